"""Compiling without a driver: every primitive on every arch, the report of ptxas, and what a digest covers."""

from pathlib import Path

import pytest

from plugins.cuda.errors import KernelError
from plugins.cuda.nvrtc import NVRTC_VERSION, compile_source, nvrtc_version, parse_usage
from plugins.cuda.source import KernelSource

EVERY_PRIMITIVE = KernelSource("every_primitive", str(Path(__file__).with_name("every_primitive.cu")))


def test_the_nvrtc_that_is_loaded_is_the_pinned_one():
    assert nvrtc_version() == NVRTC_VERSION


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"])
def test_every_primitive_compiles_to_the_same_bytes_each_time_without_spills(arch):
    compiled = compile_source(EVERY_PRIMITIVE, arch)
    assert compiled.image.startswith(b"\x7fELF")
    assert compiled.image == compile_source(EVERY_PRIMITIVE, arch).image
    assert list(compiled.usage) == ["every_primitive_kernel"]
    assert 16 <= compiled.registers <= 64
    assert compiled.spill_bytes == 0


def test_ptx_is_of_the_version_that_a_cuda_13_0_driver_loads():
    assert b".version 9.0" in compile_source(EVERY_PRIMITIVE, "compute_80").image


def test_an_image_holds_no_path_of_this_machine():
    assert str(Path(__file__).parent).encode() not in compile_source(EVERY_PRIMITIVE, "sm_90a").image


def test_usage_is_read_per_kernel_from_the_log():
    log = """ptxas info    : Compiling entry function 'one_kernel' for 'sm_90a'
ptxas info    : Function properties for one_kernel
ptxas         .     16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes stack, 128 bytes smem
ptxas info    : Compiling entry function 'two_kernel' for 'sm_90a'
ptxas info    : Used 32 registers, used 2 barriers"""
    usage = parse_usage(log)
    assert (usage["one_kernel"].registers, usage["one_kernel"].spill_bytes) == (255, 44)
    assert usage["one_kernel"].static_shared_bytes == 128
    assert (usage["two_kernel"].registers, usage["two_kernel"].spill_bytes) == (32, 0)


def test_the_digest_changes_with_the_source_a_header_and_a_macro(tmp_path):
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text("// one\n")
    (tmp_path / "a.cu").write_text('#include "a.cuh"\n')
    source = KernelSource("a", str(tmp_path / "a.cu"), (("ELEMENT", "bfloat16"),))
    digests = [source.digest(), KernelSource("a", source.file, (("ELEMENT", "float16"),)).digest()]
    (tmp_path / "b.cuh").write_text("// two\n")
    digests.append(source.digest())
    (tmp_path / "a.cu").write_text('#include "a.cuh"\n// two\n')
    digests.append(source.digest())
    assert len(set(digests)) == 4


def test_what_does_not_compile_is_an_error_with_the_compilers_line(tmp_path):
    (tmp_path / "bad.cu").write_text('extern "C" __global__ void bad_kernel() { nonsense; }\n')
    with pytest.raises(KernelError, match=r"bad does not compile for sm_90a: .*nonsense.* is undefined"):
        compile_source(KernelSource("bad", str(tmp_path / "bad.cu")), "sm_90a")


def test_a_missing_header_is_an_error_that_names_it(tmp_path):
    (tmp_path / "bad.cu").write_text('#include "absent.cuh"\n')
    with pytest.raises(KernelError, match=r"bad.cu includes 'absent.cuh'"):
        KernelSource("bad", str(tmp_path / "bad.cu")).digest()


def test_names_of_images_are_short_and_tell_macros_apart():
    few, many = (KernelSource("k", "k.cu", tuple((f"M{i}", "1234") for i in range(n))) for n in (2, 20))
    other = KernelSource("k", "k.cu", (*many.defines[:-1], ("M19", "1235")))
    assert few.id == "k-1234-1234"
    assert KernelSource("k", "k.cu").id == "k"
    assert len(many.id) < 40
    assert many.id != other.id
