"""The program ``ppsd3``: one module per command, each thin."""
