"""Programs that measure roast_optim: the robustness study and the kernel timings. Not installed with the package."""
