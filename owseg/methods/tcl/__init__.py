"""TCL (2212.00785): text-grounded masks."""

from owseg.methods.tcl.method import GROUNDER, Tcl, TclConfig

__all__ = ["GROUNDER", "Tcl", "TclConfig"]
