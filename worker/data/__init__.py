"""From stored samples to tensors on the device: evaluation images as timm makes them, training views by hashing."""
