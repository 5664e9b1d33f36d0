"""A method that a class has too."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    hybridmethod = classmethod
else:

    class hybridmethod(classmethod):
        """Decorator of a method whose first argument is the object, or the class where it is called on the class."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            return types.MethodType(self.__func__, owner if instance is None else instance)
