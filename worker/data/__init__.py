"""From stored samples to tensors on the device: evaluation images as in timm, training views by hashing."""
