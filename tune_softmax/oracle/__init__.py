"""The certified convex optimum of softmax regression with weight decay."""
