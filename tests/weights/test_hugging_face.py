import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util
from PIL import Image
from safetensors.numpy import load_file

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.weights.checkpoint import load_checkpoint, save_checkpoint
from fasseg_jax.weights.convert import convert
from fasseg_jax.weights.hugging_face import read_hugging_face, write_hugging_face
from fasseg_jax.weights.model_card import TRANSFORMERS_CODE
from tests.helpers.tiny import photo, tiny_config

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def random_model(**fields):
    """A Mask2Former of transformers without initial values, such as zero, that would hide mistakes."""
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or any(part in name for part in ("bias_table", "sampling_offsets", "attention_w")):
                parameter += 0.2 * torch.randn(parameter.shape)
    return model


def tiny_swin(**fields):
    """Window sizes that divide neither the features nor the padded images; some blocks shift their windows."""
    backbone = transformers.SwinConfig(
        embed_dim=16, depths=[2, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=3, out_features=STAGES
    )
    widths = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "num_attention_heads": 4}
    widths |= {"encoder_feedforward_dim": 48, "dim_feedforward": 40}
    numbers = {"num_queries": 7, "encoder_layers": 2, "decoder_layers": 5, "num_labels": 3}
    return {"backbone_config": backbone, **widths, **numbers, **fields}


def outputs_of(model, images):
    with torch.no_grad():
        out = model(pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return out.class_queries_logits.numpy(), out.masks_queries_logits.numpy()


def images_of(height, width):
    return np.random.default_rng(0).standard_normal((1, height, width, 3)).astype(np.float32)


def assert_close(actual, expected):
    (classes, masks), (expected_classes, expected_masks) = actual, expected
    assert expected_classes.std() > 0.1 and expected_masks.std() > 0.1  # the values differ
    np.testing.assert_allclose(classes, expected_classes, rtol=0, atol=1e-5)
    np.testing.assert_allclose(masks, expected_masks, rtol=0, atol=5e-5)


def predict(checkpoint, images):
    predictions = jax.jit(build_model(checkpoint.config.model).apply)(checkpoint.variables, images)
    return np.asarray(predictions.class_logits), np.asarray(predictions.mask_logits)


@pytest.fixture(scope="module")
def swin_t(tmp_path_factory):
    """Swin-T in shards, like the released semantic models. Returns the model, its folder and conversion's summary."""
    backbone = transformers.SwinConfig(depths=[2, 2, 6, 2], drop_path_rate=0.3, out_features=STAGES)
    model = random_model(backbone_config=backbone, num_labels=150)
    names = load_classes("ade20k").names
    model.config.id2label = {i: name + (", synonym" if i % 3 == 0 else "") for i, name in enumerate(names)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    folder = tmp_path_factory.mktemp("swin_t")
    model.save_pretrained(folder / "theirs", max_shard_size="80MB")
    return model, folder, convert(None, str(folder / "theirs"), str(folder / "ours"))


@pytest.mark.slow
def test_swin_t_of_transformers_has_the_same_outputs_here(swin_t):
    model, folder, summary = swin_t
    assert len(list((folder / "theirs").glob("model-*.safetensors"))) > 1 and "47.4M parameters" in summary
    checkpoint = load_checkpoint(folder / "ours")
    expected = load_config("configs/ade20k.py:mask2former_swin_t")
    assert checkpoint.config.model == expected.model
    assert checkpoint.config.inference == expected.inference
    images = images_of(96, 160)
    assert_close(predict(checkpoint, images), outputs_of(model, images))


@pytest.mark.slow
def test_names_are_those_of_config_json_and_known_ones_keep_their_colors(swin_t):
    checkpoint = load_checkpoint(swin_t[1] / "ours")
    assert checkpoint.classes.names[:2] == ("wall, synonym", "building")
    np.testing.assert_array_equal(checkpoint.classes.palette, load_classes("ade20k").palette)
    assert checkpoint.config.data.dataset == "ade20k"


@pytest.mark.slow
def test_there_and_back_is_bit_for_bit_equal(swin_t):
    _, folder, _ = swin_t
    summary = convert(None, str(folder / "ours"), str(folder / "back"), hugging_face=True)
    assert "from_pretrained" in summary
    theirs = {k: v for file in (folder / "theirs").glob("*.safetensors") for k, v in load_file(file).items()}
    back = load_file(folder / "back" / "model.safetensors")
    # Conversion leaves out the norm of features for classifiers, which nothing uses.
    unused = {name for name in theirs if ".swin.layernorm." in name}
    assert back.keys() == theirs.keys() and len(unused) == 2
    for name in theirs.keys() - unused:
        np.testing.assert_array_equal(back[name], theirs[name], err_msg=name)
    ours, theirs = (json.loads((folder / name / "config.json").read_text()) for name in ("back", "theirs"))
    for fields, other in ((ours, theirs), (ours["backbone_config"], theirs["backbone_config"])):
        assert fields.keys() <= {*other, "torch_dtype"}
        shared = fields.keys() - {"torch_dtype", "backbone_config"}
        assert {name: fields[name] for name in shared} == {name: other[name] for name in shared}


def tiny_mask2former(backbone):
    config = load_config("configs/cityscapes.py:mask2former_r50")
    if backbone == "convnext":
        config.model.backbone = load_config("configs/ade20k.py:convnextv2_t").model.backbone
        config.model.backbone.update(width=8, blocks=(1, 2, 1, 1))
    elif backbone == "swin":
        config.model.backbone = load_config("configs/ade20k.py:swin_t").model.backbone
        config.model.backbone.update(embed_dim=16, blocks=(1, 2, 1, 1), heads=(1, 2, 4, 8), window=4)
    else:
        config.model.backbone.update(blocks=(1, 2, 1, 1), width=8)
    config.model.hidden_dim, config.model.num_heads = 32, 4
    config.model.pixel_decoder.update(num_layers=1, ffn_dim=16)
    config.model.decoder.update(num_layers=4, ffn_dim=16, num_queries=5)
    rng = np.random.default_rng(0)

    def random(path, leaf):
        if len(leaf.shape) > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        around = 1 if path[-1] in ("scale", "var") else 0
        return rng.uniform(around - 0.3, around + 0.3, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(lambda: initial_variables(build_model(config.model), 0))
    return config, traverse_util.path_aware_map(random, shapes)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["convnext", "swin", "resnet"])
def test_transformers_computes_the_same_with_weights_from_here(backbone, tmp_path):
    config, variables = tiny_mask2former(backbone)
    save_checkpoint(tmp_path / "ours", config, variables, load_classes("cityscapes"))
    convert(None, str(tmp_path / "ours"), str(tmp_path / "theirs"), hugging_face=True)
    model, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(report.values()), report
    images = images_of(64, 96)
    assert_close(outputs_of(model.eval(), images), predict(load_checkpoint(tmp_path / "ours"), images))
    assert model.config.id2label[0] == "road" and model.config.decoder_layers == 5

    again = read_hugging_face(tmp_path / "theirs")
    assert again.differences(config.model) == []
    assert again.classes.names == load_classes("cityscapes").names
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs", backend="pil")
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (1024, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_a_folder_that_holds_only_a_backbone(kind, tmp_path):
    config = tiny_config(kind)
    torch.manual_seed(0)
    if kind == "swin":
        fields = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2}
    else:
        fields = {"embedding_size": 8, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]}
    model_config = {"swin": transformers.SwinConfig, "resnet": transformers.ResNetConfig}[kind](**fields)
    transformers.AutoModelForImageClassification.from_config(model_config).save_pretrained(tmp_path / "theirs")
    convert(config, str(tmp_path / "theirs"), str(tmp_path / "ours"))
    checkpoint = load_checkpoint(tmp_path / "ours")
    assert checkpoint.contents == "backbone"
    backbone_type = {"swin": transformers.SwinBackbone, "resnet": transformers.ResNetBackbone}[kind]
    theirs = backbone_type.from_pretrained(tmp_path / "theirs", out_features=STAGES).eval()
    images = images_of(64, 96)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).feature_maps
    backbone = {name: tree["backbone"] for name, tree in checkpoint.variables.items()}
    found = jax.jit(build_model(config.model).backbone.apply)(backbone, images)
    for ours, map_ in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, map_.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_another_configuration(tmp_path):
    """--config sets the classes and the test size; its architecture must be that of the folder."""
    random_model(**tiny_swin()).save_pretrained(tmp_path / "theirs")
    config = read_hugging_face(tmp_path / "theirs").config
    arguments = (str(tmp_path / "theirs"), str(tmp_path / "ours"))
    with pytest.raises(ValueError, match="--new_class_head needs --config"):
        convert(None, *arguments, new_class_head=True)
    (tmp_path / "mine.csv").write_text("id,r,g,b,name\n0,1,2,3,cat\n1,4,5,6,dog\n")
    config.data.dataset, config.model.num_classes, config.model.decoder.num_queries = str(tmp_path / "mine.csv"), 2, 9
    with pytest.raises(ValueError, match="--config has another model") as error:
        convert(config, *arguments)
    assert [line.split()[0] for line in str(error.value).splitlines()[1:]] == [
        "config.model.decoder.num_queries",
        "config.model.num_classes",
    ]
    config.model.decoder.num_queries, config.inference.short_side = 7, 300
    convert(config, *arguments, new_class_head=True)
    checkpoint = load_checkpoint(tmp_path / "ours")
    assert checkpoint.classes.names == ("cat", "dog") and checkpoint.config.inference.short_side == 300
    assert checkpoint.variables["params"]["decoder"]["class_embed"]["kernel"].shape == (32, 3)
    embed = load_file(tmp_path / "theirs" / "model.safetensors")["model.transformer_module.queries_embedder.weight"]
    np.testing.assert_array_equal(checkpoint.variables["params"]["decoder"]["query_embed"], embed)


def rewrite(folder, file="config.json", **fields):
    description = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(description | fields))


def test_one_error_lists_all_that_is_not_supported(tmp_path):
    folder = tmp_path / "theirs"
    model = random_model(**tiny_swin())
    model.save_pretrained(folder)
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    rewrite(
        folder,
        pre_norm=True,
        mask_feature_size=64,
        id2label={"0": "a", "2": "b"},
        backbone_config=backbone | {"patch_size": 2, "out_features": ["stage4"], "out_indices": [4]},
    )
    rewrite(folder, "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(ValueError) as error:
        read_hugging_face(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder}: this network does not support the model:"
    assert [line.split()[0] for line in lines[1:]] == [
        "pre_norm",
        "mask_feature_size",
        "backbone_config.patch_size",
        "backbone_config.out_features",
        "id2label",
        "preprocessor_config.json:",
    ]
    rewrite(folder, backbone_config=None, backbone="microsoft/swin-tiny")
    with pytest.raises(ValueError, match="'resnet', 'swin'; .* names only a backbone, 'microsoft/swin-tiny'"):
        read_hugging_face(folder)
    rewrite(folder, model_type="maskformer")
    with pytest.raises(ValueError, match="model_type is 'maskformer'"):
        read_hugging_face(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: damaged or not JSON"):
        read_hugging_face(folder)


def test_weights_that_do_not_fit(tmp_path):
    folder = tmp_path / "theirs"
    random_model(**tiny_swin()).save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    kept = shards[-1].read_bytes()
    shards[-1].unlink()
    with pytest.raises(FileNotFoundError, match=shards[-1].name):
        read_hugging_face(folder)
    shards[-1].write_bytes(kept)
    index = folder / "model.safetensors.index.json"
    description = json.loads(index.read_text())
    name = next(iter(description["weight_map"]))
    del description["weight_map"][name]
    index.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"theirs: the weights do not fit.*\n  1 missing:\n    {name}\n"):
        convert(None, str(folder), str(tmp_path / "ours"))
    description["weight_map"][name] = "../elsewhere.safetensors"
    index.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="no weight_map from names to files beside it"):
        read_hugging_face(folder)
    index.unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.safetensors or pytorch_model.bin"):
        read_hugging_face(folder)


def test_a_file_of_pytorch_and_a_fixed_test_size(tmp_path):
    folder = tmp_path / "theirs"
    model = random_model(**tiny_swin(id2label={"0": "cat", "1": "dog", "2": "emu"}))
    model.save_pretrained(folder)
    expected = load_file(folder / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in expected.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="pytorch_model.bin: a Mask2Former of transformers; give the folder"):
        config = load_config("configs/cityscapes.py:r50")
        convert(config, str(folder / "pytorch_model.bin"), str(tmp_path / "ours"))
    rewrite(folder, "preprocessor_config.json", size={"height": 384, "width": 640})
    read = read_hugging_face(folder)
    assert read.state_dict.keys() == expected.keys()
    assert (read.config.inference.short_side, read.config.inference.max_long_side) == (384, 2048)
    assert read.classes.names == ("cat", "dog", "emu") and len(np.unique(read.classes.palette, axis=0)) == 3
    rewrite(folder, "preprocessor_config.json", size=700, max_size=1333)  # version 4.27 and earlier
    inference = read_hugging_face(folder).config.inference
    assert (inference.short_side, inference.max_long_side) == (700, 1333)


def test_what_transformers_lacks_is_refused(tmp_path):
    config, variables = tiny_mask2former("swin")
    config.model.decoder.mask_threshold, config.model.decoder.hrca = 0.15, True
    with pytest.raises(ValueError, match="transformers has only Mask2Former, not FASeg") as error:
        write_hugging_face(tmp_path / "theirs", config, variables, load_classes("cityscapes"))
    assert [line.split()[0] for line in str(error.value).splitlines()[1:-1]] == [
        "config.model.decoder.hrca",
        "config.model.decoder.mask_threshold",
    ]
    assert not (tmp_path / "theirs").exists()


def test_only_a_model_of_the_same_kind_is_overwritten(tmp_path):
    config, variables = tiny_mask2former("swin")
    classes = load_classes("cityscapes")
    folder = tmp_path / "theirs"
    write_hugging_face(folder, config, variables, classes)
    with pytest.raises(FileExistsError, match="not empty; name another or pass --overwrite"):
        write_hugging_face(folder, config, variables, classes)
    changed = traverse_util.path_aware_map(lambda _, value: value + 1, variables)
    write_hugging_face(folder, config, changed, classes, overwrite=True)
    embed = load_file(folder / "model.safetensors")["model.transformer_module.queries_embedder.weight"]
    np.testing.assert_array_equal(embed, changed["params"]["decoder"]["query_embed"])
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="holds something other than a Mask2Former"):
        write_hugging_face(folder, config, variables, classes, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "dear"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_the_code_of_the_model_card_gives_the_labels_of_this_package(backbone, tmp_path, monkeypatch):
    config, variables = tiny_mask2former(backbone)
    decoder = variables["params"]["decoder"]  # several classes in a photo
    decoder["class_embed"]["kernel"] *= 12
    decoder["mask_embed_2"]["kernel"] *= 30
    config.inference.update(short_side=64, max_long_side=100)
    write_hugging_face(tmp_path / "model", config, variables, load_classes("cityscapes"))
    segmenter = Segmenter(config, variables)
    monkeypatch.chdir(tmp_path)
    found = set()
    for height, width in ((75, 100), (97, 61), (20, 90)):
        image = photo(height, width)
        Image.fromarray(image).save(tmp_path / "photo.jpg", "png")  # without loss
        names = {"name": str(tmp_path / "model")}
        exec(TRANSFORMERS_CODE, names)
        expected = segmenter(image).labels
        # Float32 rounds differently in the two programs: where two classes are almost equal, either may win.
        scores = torch.nn.functional.interpolate(names["scores"], (height, width), mode="bilinear")[0].detach()
        lead = scores.max(0).values - scores.gather(0, torch.tensor(expected[None].astype(int)))[0]
        assert lead.max() < 1e-3, (height, width)
        assert np.mean(names["labels"].numpy() != expected) < 0.05, (height, width)
        found |= set(np.unique(expected))
    assert len(found) > 1
