"""The certified convex optimum of softmax regression with weight decay.

The folder and the verb have one name. `import tune_softmax.oracle.path` puts this folder into the
package under the name that `tune_softmax.oracle(experiment)` calls, so the folder can be called:
it does what `path.oracle` does, and takes the same arguments.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_softmax.oracle.path import Oracle


class _CallableModule(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Oracle:  # noqa: ANN401 - passed on
        from tune_softmax.oracle.path import oracle

        return oracle(*arguments, **options)


import_module(__name__).__class__ = _CallableModule
