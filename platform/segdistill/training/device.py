"""What the device can do."""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware (emulated, it would be slower than f32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
