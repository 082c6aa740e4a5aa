"""Small random models of transformers, saved as their classes save them, with their processors."""

import json
from pathlib import Path

import torch
import transformers
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SIDE = 32  # pixels
TEXTS = [
    "a photo of a cat",
    "two trees",
    "",
    "Ein großes Haus, très joli!",
    " ".join(["long words of a text that is cut"] * 30),
]
CORPUS = [*TEXTS, *"abcdefghijklmnopqrstuvwxyz", "cats and dogs", "a red house by the sea"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
ALIGN_VISION = {
    "image_size": SIDE,
    "width_coefficient": 1.0,
    "depth_coefficient": 0.2,
    "hidden_dim": 24,
    "out_channels": [16, 24],
    "in_channels": [32, 16],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 6],
    "num_hidden_layers": 2,
}


def clip_tokenizer():
    """Return CLIP's tokenizer, its files made from open_clip's vocabulary."""
    simple = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in simple.encoder.items()}
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77
    )


def _trained(trainer, model, post, **tokens):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = post(tokenizer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def siglip_tokenizer():
    """Return a tokenizer that ends a text and fills it up, as SigLIP's does."""
    special = ["<unk>", "</s>"]
    return _trained(
        trainers.BpeTrainer(vocab_size=300, special_tokens=special),
        models.BPE(unk_token="<unk>"),
        lambda made: processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
        ),
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=64,
    )


def gemma_tokenizer():
    """Return a tokenizer with SigLIP 2's special tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return _trained(
        trainers.BpeTrainer(vocab_size=300, special_tokens=special),
        models.BPE(unk_token="<unk>"),
        lambda made: processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        ),
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        mask_token="<mask>",
        padding_side="right",
        model_max_length=64,
    )


def bert_tokenizer(folder: Path):
    """Return BERT's tokenizer of a small vocabulary."""
    words = sorted({word for text in CORPUS for word in text.lower().split() if word.isalpha()})
    pieces = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    file = folder / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]))
    return transformers.BertTokenizerFast(str(file), model_max_length=80)


def roberta_tokenizer():
    """Return a tokenizer with XLM-RoBERTa's special tokens, padding in place 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return _trained(
        trainers.BpeTrainer(vocab_size=300, special_tokens=special),
        models.BPE(unk_token="<unk>"),
        lambda made: processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        ),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=77,
    )


def _clip(folder):
    tokenizer = clip_tokenizer()
    config = transformers.CLIPConfig(
        vision_config=VISION | {"hidden_act": "quick_gelu"},
        text_config=TEXT | {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407},
        projection_dim=16,
    )
    return transformers.CLIPModel(config), tokenizer, _center(transformers.CLIPImageProcessor)


def _siglip(folder):
    tokenizer = siglip_tokenizer()
    config = transformers.SiglipConfig(
        vision_config=VISION,
        text_config=TEXT | {"vocab_size": len(tokenizer), "projection_size": 32},
    )
    return transformers.SiglipModel(config), tokenizer, _square(transformers.SiglipImageProcessor)


def _siglip2(folder):
    tokenizer = gemma_tokenizer()
    vision = {name: value for name, value in VISION.items() if name != "image_size"}
    config = transformers.Siglip2Config(
        vision_config=vision | {"num_patches": 16},
        text_config=TEXT | {"vocab_size": len(tokenizer), "projection_size": 32},
    )
    processor = _square(transformers.SiglipImageProcessor)
    return transformers.Siglip2Model(config), tokenizer, processor


def _metaclip(folder):
    tokenizer = roberta_tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2}
    config = transformers.MetaClip2Config(
        vision_config=VISION, text_config=text | {"pad_token_id": 1}, projection_dim=16
    )
    return transformers.MetaClip2Model(config), tokenizer, _center(transformers.CLIPImageProcessor)


def _align(folder):
    tokenizer = bert_tokenizer(folder)
    config = transformers.AlignConfig(
        vision_config=ALIGN_VISION,
        text_config=TEXT | {"vocab_size": len(tokenizer), "hidden_size": 24},
        projection_dim=24,
        temperature_init_value=0.07,
    )
    processor = transformers.EfficientNetImageProcessor(
        size={"height": SIDE, "width": SIDE},
        resample=2,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
    return transformers.AlignModel(config), tokenizer, processor


def _altclip(folder):
    tokenizer = roberta_tokenizer()
    text = TEXT | {"vocab_size": len(tokenizer), "project_dim": 24, "max_position_embeddings": 90}
    config = transformers.AltCLIPConfig(vision_config=VISION, text_config=text, projection_dim=16)
    return transformers.AltCLIPModel(config), tokenizer, _center(transformers.CLIPImageProcessor)


def _chinese_clip(folder):
    tokenizer = bert_tokenizer(folder)
    config = transformers.ChineseCLIPConfig(
        vision_config=VISION, text_config=TEXT | {"vocab_size": len(tokenizer)}, projection_dim=16
    )
    processor = _center(transformers.ChineseCLIPImageProcessor)
    return transformers.ChineseCLIPModel(config), tokenizer, processor


def _dual_encoder(folder):
    tokenizer = bert_tokenizer(folder)
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=transformers.ViTConfig(**VISION).to_dict(),
        text_config=transformers.BertConfig(**TEXT, vocab_size=len(tokenizer)).to_dict(),
        projection_dim=16,
    )
    model = transformers.VisionTextDualEncoderModel(config)
    return model, tokenizer, _square(transformers.ViTImageProcessor)


def _timm_dual_encoder(folder):
    tokenizer = clip_tokenizer()
    vision = transformers.TimmWrapperConfig(architecture="test_resnet", hidden_size=96)
    text = transformers.CLIPTextConfig(**TEXT, eos_token_id=49407, pad_token_id=49407)
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=vision.to_dict() | {"hidden_size": 96},
        text_config=text.to_dict(),
        projection_dim=16,
    )
    model = transformers.VisionTextDualEncoderModel(config)
    return model, tokenizer, _center(transformers.CLIPImageProcessor)


def _center(kind):
    return kind(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def _square(kind):
    return kind(size={"height": SIDE, "width": SIDE})


MAKERS = {
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "metaclip_2": _metaclip,
    "align": _align,
    "altclip": _altclip,
    "chinese_clip": _chinese_clip,
    "dual-encoder": _dual_encoder,
    "dual-encoder-timm": _timm_dual_encoder,
}


def make(kind: str, folder: Path, **options):
    """Save a random model of a kind with its processor into a folder; return the model."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, tokenizer, processor = MAKERS[kind](folder)
    with torch.no_grad():
        for weights in model.parameters():  # biases, too, and so much that images differ
            weights.add_(torch.randn_like(weights) * 0.1)
    model = model.eval()
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def edit(folder: Path, name: str = "config.json", **changes):
    """Change keys of a JSON file in a folder."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
