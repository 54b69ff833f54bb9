"""Shows the type checker `rehrseg_nnunet.trainers` where an installed package has it; not part of the package."""
