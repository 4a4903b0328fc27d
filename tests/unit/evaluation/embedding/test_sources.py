"""ONNX models, weights by other people's names, embeddings made elsewhere: each gives the features of its network."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pipeline.backbones import BACKBONES  # noqa: E402
from pipeline.evaluation.embedding.feeding import Given  # noqa: E402
from pipeline.evaluation.embedding.onnx import load_onnx  # noqa: E402
from pipeline.evaluation.embedding.parquet import write_embeddings  # noqa: E402
from pipeline.evaluation.embedding.source import How, Source, image_files  # noqa: E402
from pipeline.evaluation.embedding.table import load_table  # noqa: E402
from pipeline.evaluation.embedding.weights import load_weights  # noqa: E402
from tests.unit.evaluation.embedding.ir_network import IR  # noqa: E402

HEIGHT, WIDTH = 16, 12
CPU = torch.device("cpu")
PLAIN = Given(mean=(0.0,), scale=(1.0,))


def write_model(
    file: Path,
    batch: Any = "batch",
    layout: str = "NCHW",
    metadata: dict[str, Any] | None = None,
    dtype: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """A model of one matrix: the sums of its rows weighted by pixels; returns the matrix [3 * H * W, 5]."""
    matrix = np.random.default_rng(seed).normal(size=(3 * HEIGHT * WIDTH, 5)).astype(np.float32)
    shape = [batch, 3, HEIGHT, WIDTH] if layout == "NCHW" else [batch, HEIGHT, WIDTH, 3]
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", dtype, shape)],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {"input": json.dumps(metadata)})
    onnx.save(model, str(file))
    return matrix


@pytest.fixture
def faces(tmp_path: Path) -> tuple[Path, list[str], np.ndarray]:
    """Five images, and their pixels [5, H, W, 3]."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, HEIGHT, WIDTH, 3), np.uint8)
    names = [f"p{i}/a b#{i}.png" for i in range(5)]
    for name, image in zip(names, pixels, strict=True):
        (tmp_path / "faces" / name).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "faces" / name)
    return tmp_path / "faces", names, pixels


def features(source: Source, folder: Path, names: list[str], batch: int = 2) -> np.ndarray:
    return np.concatenate(list(source.features(image_files(folder, names), How(batch))))


def by_hand(pixels: np.ndarray, matrix: np.ndarray, layout: str = "NCHW") -> np.ndarray:
    """In float64: the image's product and its mirror's."""
    both = []
    for images in (pixels, pixels[:, :, ::-1]):
        ordered = images.transpose(0, 3, 1, 2) if layout == "NCHW" else images
        both.append(ordered.reshape(len(images), -1).astype(np.float64) @ matrix.astype(np.float64))
    return np.concatenate(both, axis=1)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.UINT8])
def test_an_onnx_model_of_any_shape_gives_its_features(
    tmp_path: Path, faces: tuple[Path, list[str], np.ndarray], batch: Any, layout: str, dtype: int
) -> None:
    folder, names, pixels = faces
    matrix = write_model(tmp_path / "net.onnx", batch, layout, dtype=dtype)
    found = features(load_onnx(tmp_path / "net.onnx", PLAIN, CPU), folder, names)
    np.testing.assert_allclose(found, by_hand(pixels, matrix, layout), rtol=1e-4, atol=0.2)


def test_the_input_is_known_from_metadata_a_json_or_flags(
    tmp_path: Path, faces: tuple[Path, list[str], np.ndarray]
) -> None:
    folder, names, pixels = faces
    file = tmp_path / "net.onnx"
    wanted = {"height": HEIGHT, "width": WIDTH, "channels": "BGR", "normalisation": {"mean": 0, "scale": 1}}
    matrix = write_model(file)
    with pytest.raises(ValueError, match=r"net.onnx: got no mean of the input, wanted .* --mean 127.5"):
        load_onnx(file, Given(), CPU)
    expected = by_hand(pixels[..., ::-1], matrix)
    by_flags = load_onnx(file, Given(channels="BGR", mean=(0.0,), scale=(1.0,)), CPU)
    file.with_suffix(".json").write_text(json.dumps({"input": wanted}))
    by_json = load_onnx(file, Given(), CPU)
    file.with_suffix(".json").unlink()
    write_model(file, metadata=wanted)
    by_metadata = load_onnx(file, Given(), CPU)
    for source in (by_flags, by_json, by_metadata):
        np.testing.assert_allclose(features(source, folder, names), expected, rtol=1e-4, atol=0.2)
    assert by_flags.digest == by_json.digest
    assert load_onnx(file, Given(channels="RGB"), CPU).digest != by_metadata.digest
    with pytest.raises(ValueError, match=r"net.onnx: size: got 20x12, wanted that of its input, 16x12"):
        load_onnx(file, Given(size=(20, 12)), CPU)


def test_weights_in_a_file_beside_the_model_count_for_its_digest(tmp_path: Path) -> None:
    """The graph of two networks is then the same to the byte, and features are kept by the digest."""
    digests = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        write_model(tmp_path / "whole.onnx", seed=seed)
        onnx.save(
            onnx.load(tmp_path / "whole.onnx"),
            tmp_path / name / "net.onnx",
            save_as_external_data=True,
            location="net.data",
        )
        digests.append(load_onnx(tmp_path / name / "net.onnx", PLAIN, CPU).digest)
    one, _, other = (tmp_path / name / "net.onnx" for name in ("one", "same", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert digests[0] == digests[1] != digests[2]


def test_what_is_no_model_of_faces_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"net.onnx: not a model that onnxruntime runs") as caught:
        load_onnx(tmp_path / "net.onnx", PLAIN, CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"none.onnx: cannot be read: No such file"):
        load_onnx(tmp_path / "none.onnx", PLAIN, CPU)
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    flat = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "flat", flat[:1], flat[1:]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, str(tmp_path / "flat.onnx"))
    with pytest.raises(ValueError, match=r"flat.onnx: got inputs .*, wanted one of images"):
        load_onnx(tmp_path / "flat.onnx", PLAIN, CPU)


def settled(module: nn.Module) -> nn.Module:
    """BatchNorm statistics of something other than nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(4, 3, 32, 32))
    return module.eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    own = settled(BACKBONES["iresnet18"](name="iresnet18", embedding_dim=24).build((32, 32)))
    return {"iresnet18": own, "iresnet50": settled(IR(50, 24, (32, 32)))}


@pytest.mark.parametrize("name", ["iresnet18", "iresnet50"])
@pytest.mark.parametrize("shape", ["plain", "wrapped", "prefixed", "safetensors"])
def test_weights_by_arcface_torchs_and_cvlfaces_names(
    tmp_path: Path, networks: dict[str, nn.Module], name: str, shape: str
) -> None:
    module = networks[name]
    weights = module.state_dict()
    file = tmp_path / ("net.safetensors" if shape == "safetensors" else "net.pth")
    if shape == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, file)
    elif shape == "wrapped":
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}, "epoch": 3}, file)
    elif shape == "prefixed":
        torch.save({**{f"net.{key}": value for key, value in weights.items()}, "head.kernel": torch.ones(3)}, file)
    else:
        torch.save(weights, file)
    source = load_weights(file, name, Given(size=(32, 32)))
    images = torch.randint(0, 256, (3, 3, 32, 32)).float()
    with torch.no_grad():
        found, expected = source.module((images - 127.5) / 128), module((images / 255 - 0.5) / 0.5)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert source.size == (32, 32)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.target,)


def test_weights_are_never_run_as_a_pickle(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 2), "extra": Bomb(tmp_path / "boom")}, tmp_path / "bad.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    (tmp_path / "text.pth").write_text("hello")
    for file, why in (
        ("bad.pth", r"got \S+ in its pickle, which is not run, wanted tensors alone: torch.save\("),
        ("old.pth", r"(got \S+ in its pickle|neither safetensors nor tensors)"),
        ("whole.pt", r"got torch.nn.modules.linear.Linear in its pickle, which is not run"),
        ("text.pth", r"neither safetensors nor tensors as torch.save writes them$"),
        ("absent.pth", r"No such file or directory$"),
    ):
        with pytest.raises(ValueError, match=f"{file}: not a file of weights: {why}") as caught:
            load_weights(tmp_path / file, "iresnet50", Given())
        assert "weights_only" not in str(caught.value), "advice of torch's to run the pickle"
    assert not (tmp_path / "boom").exists()


def test_weights_that_do_not_fit_are_named(tmp_path: Path, networks: dict[str, nn.Module]) -> None:
    torch.save(networks["iresnet18"].state_dict(), tmp_path / "net.pth")
    missing = r"weights do not fit iresnet34 at 32 × 32: [1-9][0-9]* missing \(layer1.2.bn1.weight\)$"
    with pytest.raises(ValueError, match=f"net.pth: {missing}"):
        load_weights(tmp_path / "net.pth", "iresnet34", Given(size=(32, 32)))
    shape = r"1 of another shape \(fc.weight: got \[\d+, 2048\], wanted \[\d+, 4608\]\)$"
    with pytest.raises(ValueError, match=shape):
        load_weights(tmp_path / "net.pth", "iresnet18", Given(size=(48, 48)))
    with pytest.raises(ValueError, match=r"backbone: got 'resnet', wanted one of"):
        load_weights(tmp_path / "net.pth", "resnet", Given(size=(32, 32)))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: got list, wanted a dictionary of tensors"):
        load_weights(tmp_path / "list.pth", "iresnet18", Given())


@pytest.mark.parametrize("suffix", ["npz", "parquet", "parts"])
def test_embeddings_are_found_by_path(tmp_path: Path, faces: tuple[Path, list[str], np.ndarray], suffix: str) -> None:
    folder, names, _ = faces
    rows = np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32)
    shuffled = [names[3], names[0], names[4], names[1]]
    file = tmp_path / f"made.{suffix}"
    if suffix == "npz":
        np.savez(file, paths=np.array(shuffled), embeddings=rows)
    elif suffix == "parquet":
        write_embeddings(file, shuffled, [rows], {})
    else:  # as two ranks write them
        write_embeddings(file / "part-00000.parquet", shuffled[:3], [rows[:3]], {})
        write_embeddings(file / "part-00001.parquet", shuffled[3:], [rows[3:]], {})
        before, listed = load_table(file).digest, sorted(file.glob("*.parquet"))
        for order in (listed, listed[::-1]):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Path, "glob", lambda *_, order=order: order)
                assert load_table(file).digest == before, "in whatever order a disk lists them"
        write_embeddings(file / "part-00001.parquet", shuffled[3:], [rows[3:] + 1], {})
        assert load_table(file).digest != before
        write_embeddings(file / "part-00001.parquet", shuffled[3:], [rows[3:]], {})
    found = features(load_table(file), folder, names)
    np.testing.assert_array_equal(found[[3, 0, 4, 1]], rows)
    assert np.isnan(found[2]).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"paths": np.array(["a"])}, r"got arrays paths, wanted paths and embeddings"),
        (
            {"paths": np.array(["a", "b"]), "embeddings": np.ones((1, 3))},
            r"got 2 paths and embeddings float64",
        ),
        ({"paths": np.array(["a"]), "embeddings": np.ones((1, 3), np.int32)}, r"got 1 paths and embeddings int32"),
        ({"paths": np.array(["a", "a"]), "embeddings": np.ones((2, 3))}, r"got 1 paths twice"),
        ({"paths": np.array(["a"]), "embeddings": np.full((1, 3), np.inf)}, r"got embeddings that are not finite"),
        ({"paths": np.array(["a"]), "embeddings": np.array([[object()]])}, r"not a file of embeddings"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "made.npz", **arrays)
    with pytest.raises(ValueError, match=rf"made.npz: .*{message}|made.npz: {message}"):
        load_table(tmp_path / "made.npz")


@pytest.mark.parametrize("fault", ["empty", "an array", "cut", "damaged"])
def test_a_table_that_is_no_npz_is_named(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "made.npz"
    np.savez_compressed(file, paths=np.array(["a"]), embeddings=np.random.default_rng(0).normal(size=(1, 300)))
    content = bytearray(file.read_bytes())
    if fault == "an array":
        np.save(tmp_path / "one.npy", np.ones(3))
        content = bytearray((tmp_path / "one.npy").read_bytes())
    elif fault == "damaged":
        begin = content.index(b"embeddings.npy") + 40  # within its compressed numbers
        content[begin : begin + 8] = b"\xff" * 8
    file.write_bytes(content[: {"empty": 0, "cut": len(content) // 2}.get(fault)])
    with pytest.raises(ValueError, match=r"made.npz: not a file of embeddings: "):
        load_table(file)
