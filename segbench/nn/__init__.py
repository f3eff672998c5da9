"""Network parts, losses and tensor operations that methods and backbones are written in."""
