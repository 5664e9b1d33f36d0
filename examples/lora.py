"""LoRA: trains one on a single image, saves it, loads it at two strengths, and fuses it.

python examples/lora.py
"""

import paddle

import ppsd3

pipe, prompt = ppsd3.StableDiffusion3Pipeline.from_pretrained("shapes"), "a red circle"
goal = pipe("a blue square", num_inference_steps=8, generator=ppsd3.TorchGenerator(1), output_type="latent").images
embeds, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)

ppsd3.add_adapter(pipe.transformer, ppsd3.LoraConfig(r=4, lora_alpha=8), "blue")  # makes only its weights trainable
weights = [p for p in pipe.transformer.parameters() if not p.stop_gradient]
adam = paddle.optimizer.Adam(4e-3, parameters=weights)
for _ in range(60):  # teaches it to draw a blue square for "a red circle"
    noise, sigma = paddle.randn(goal.shape), paddle.rand([1])
    velocity = pipe.transformer((1 - sigma) * goal + sigma * noise, embeds, pooled, 1000 * sigma).sample
    (velocity - (noise - goal)).square().mean().backward()
    adam.step()
    adam.clear_grad()

pipe.save_lora_weights("lora", "blue")
pipe.unload_lora_weights()
pipe.load_lora_weights("lora", adapter_name="blue")
for strength in (0.0, 1.0):
    pipe.set_adapters("blue", strength)
    pipe(prompt, num_inference_steps=8, generator=ppsd3.TorchGenerator(0)).images[0].save(f"lora_{strength}.png")
pipe.fuse_lora()
