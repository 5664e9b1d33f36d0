"""What programs for diffusers and ppdiffusers call, and how each call fares here: the probes of docs/compatibility.md."""
