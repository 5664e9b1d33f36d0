"""IP-Adapter: an image as a prompt, at three scales.

No IP-adapter was trained for the bundled model. This one has random weights: the calls are real, the images are not.
With SD3.5-large: pipe.load_ip_adapter("guiyrt/InstantX-SD3.5-Large-IP-Adapter-diffusers").

python examples/ip_adapter.py
"""

import paddle

import ppsd3

paddle.seed(0)
pipe = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes")
style = pipe("a large red star on a yellow background", num_inference_steps=8).images[0]

# what a published adapter's directory has: an image encoder with its processor, and the adapter
tower = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64}
pipe.image_encoder = ppsd3.SiglipVisionModel(intermediate_size=96, **tower)
pipe.feature_extractor = ppsd3.SiglipImageProcessor(size={"height": 64, "width": 64})
adapter = ppsd3.IPAdapter(pipe.transformer.config, embed_dim=48, hidden_dim=64, depth=1, heads=1, num_queries=4)
pipe.load_ip_adapter(adapter.state_dict())

embeds = pipe.prepare_ip_adapter_image_embeds(style)  # once, for all calls
for scale in (0.0, 0.5, 1.0):
    pipe.set_ip_adapter_scale(scale)
    options = {"ip_adapter_image_embeds": embeds, "generator": ppsd3.TorchGenerator(0)}
    pipe("a blue square", num_inference_steps=8, **options).images[0].save(f"ip_adapter_{scale}.png")
