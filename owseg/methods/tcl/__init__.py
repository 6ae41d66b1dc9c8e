"""TCL (2212.00785): text-grounded masks."""

from owseg.methods.tcl.method import Tcl, TclConfig
from owseg.methods.tcl.settings import GROUNDER

__all__ = ["GROUNDER", "Tcl", "TclConfig"]
