"""Small trainable parts on frozen weights: surgery, LoRA, and files that PEFT reads."""
