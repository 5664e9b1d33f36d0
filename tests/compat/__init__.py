"""What programs for diffusers and ppdiffusers call, and what comes of it: the probes of docs/compatibility.md."""
