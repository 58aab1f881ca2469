"""What trains next and who stops: sampler, ASHA and dispatcher; knows no Ray."""
