"""From stored samples to tensors on the device: evaluation pictures as timm makes them, training views by hashing."""
