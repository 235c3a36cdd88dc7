"""Export of stages to other runtimes: installed as vkrt.export."""
