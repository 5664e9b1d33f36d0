"""What ``ppsd3 doctor --gpu-report`` measures: what works on a device and how exactly, how much memory, how fast.

Everything is compared with this machine's CPU in float32. Sections are separate: one that fails is an entry of the
report, and the next begins. Nothing in a report names the user, the machine or a directory.
"""

from .run import write_report as write_report
