"""Reading and writing volumes: what nibabel and SimpleITK read, and every file that must be refused."""

import gzip
import logging

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from zoo.data.volumes import (
    Volume,
    VolumeReadError,
    check_same_grid,
    is_volume_file,
    read_channels,
    read_volume,
    shear_of,
    spacing_of,
    strip_ending,
    write_volume,
)


def oblique(spacing=(0.7, 0.9, 3.0), angle=0.3):
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-c, s, 0], [-s, -c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = (-31.5, 12.25, 100)
    return affine


def save(path, array, affine=None, kind=nib.Nifti1Image, **header):
    image = kind(array, oblique() if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@pytest.fixture
def array():
    return np.random.default_rng(0).integers(-1000, 1000, (7, 5, 3)).astype(np.int16)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_is_read_as_nibabel_reads_it(tmp_path, array, ending, kind):
    path = save(tmp_path / f"a{ending}", array, kind=kind)
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, nib.load(path).get_fdata())
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.spacing == pytest.approx((0.7, 0.9, 3.0))
    assert volume.shape == (7, 5, 3)
    assert volume.shear < 1e-6
    assert volume.path == str(path)


def test_scaled_values_are_those_of_nibabel(tmp_path):
    values = np.random.default_rng(1).normal(0, 300, (6, 5, 4))
    image = nib.Nifti1Image(values, oblique())
    image.set_data_dtype(np.int16)  # nibabel then writes a slope and an intercept
    nib.save(image, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope != 1
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.nii.gz").data, nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32)
    )


def big_endian(path, array, affine=None):
    image = nib.Nifti1Image(array, oblique() if affine is None else affine)
    header = image.header.as_byteswapped(">")
    swapped = nib.Nifti1Image(array, image.affine, header)
    assert swapped.header.endianness == ">"
    nib.save(swapped, path)
    assert path.suffix == ".gz" or path.read_bytes()[:4] == b"\0\0\x01\x5c"
    return path


def test_big_endian_file_is_read_right_and_written_back_big_endian(tmp_path, array):
    path = big_endian(tmp_path / "a.nii", array)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, array)
    assert volume.data.dtype.isnative
    labels = (array > 0).astype(np.int16) * 300
    written = write_volume(tmp_path / "b.nii", labels, volume)
    np.testing.assert_array_equal(nib.load(written).get_fdata(), labels)
    assert written.read_bytes()[:4] == b"\0\0\x01\x5c"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(written))).T, labels)


def test_four_dimensions_are_refused_unless_a_channel_is_named(tmp_path, array):
    path = save(tmp_path / "a.nii.gz", np.stack([array, array + 1], -1))
    with pytest.raises(VolumeReadError, match=r"a\.nii\.gz has 4 dimensions, 7 x 5 x 3 x 2; accepted is one volume"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, channel=1).data, array + 1)
    with pytest.raises(VolumeReadError, match="there is no channel 2"):
        read_volume(path, channel=2)
    one = save(tmp_path / "one.nii.gz", array[..., None])  # a fourth axis of one voxel is none
    assert read_volume(one).shape == (7, 5, 3)


def test_colours_complex_numbers_and_flat_images_are_refused(tmp_path, array):
    rgb = np.zeros((7, 5, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeReadError, match=r"rgb\.nii\.gz holds colours"):
        read_volume(save(tmp_path / "rgb.nii.gz", rgb))
    with pytest.raises(VolumeReadError, match="complex64"):
        read_volume(save(tmp_path / "c.nii", array.astype(np.complex64)))
    with pytest.raises(VolumeReadError, match="dimensions 7 x 5;"):
        read_volume(save(tmp_path / "flat.nii", array[..., 0]))
    with pytest.raises(VolumeReadError, match="7 x 5 x 3 x 1 x 2"):
        read_volume(save(tmp_path / "five.nii", np.stack([array[..., None]] * 2, -1)))


def test_missing_affine_is_an_error_unless_allowed(tmp_path, array, caplog):
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((0.5, 0.5, 2.0))
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(VolumeReadError, match=r"a\.nii\.gz has no affine .* allow_missing_affine=True"):
        read_volume(tmp_path / "a.nii.gz")
    with caplog.at_level(logging.WARNING):
        volume = read_volume(tmp_path / "a.nii.gz", allow_missing_affine=True)
    np.testing.assert_array_equal(volume.affine, np.diag([0.5, 0.5, 2, 1]))
    assert "has no affine" in caplog.text
    written = nib.load(write_volume(tmp_path / "b.nii.gz", (array > 0).astype(np.uint8), volume))
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 0
    assert written.header.get_zooms() == image.header.get_zooms()


@pytest.mark.parametrize("bad", ["nan", "flat"])
def test_affine_that_is_no_map_of_space(tmp_path, array, bad):
    affine = oblique()
    affine[:3, 1] = np.nan if bad == "nan" else affine[:3, 0]
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_sform(affine, 1)
    image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(array, None, image.header), tmp_path / "a.nii")
    with pytest.raises(VolumeReadError, match="no map of space"):
        read_volume(tmp_path / "a.nii")


def test_sheared_affine_is_read_with_a_warning_and_written_back(tmp_path, array, caplog):
    affine = oblique()
    affine[:3, 2] += 0.5 * affine[:3, 1]
    path = save(tmp_path / "tilted.nii.gz", array, affine)
    with caplog.at_level(logging.WARNING):
        volume = read_volume(path)
    assert "tilted.nii.gz has axes that are not at right angles" in caplog.text
    expected = 0.5 * 0.9**2 / (0.9 * np.hypot(3.0, 0.45))
    assert volume.shear == pytest.approx(expected, rel=1e-5)
    written = nib.load(write_volume(tmp_path / "b.nii.gz", (array > 0).astype(np.uint8), volume))
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)


def test_spacing_is_the_affines_where_pixdim_differs(tmp_path, array, caplog):
    path = save(tmp_path / "a.nii", array)
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(5).tobytes()  # pixdim[1]
    content[252:254] = np.int16(0).tobytes()  # qform_code, whose spacing is pixdim's
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert read_volume(path).spacing == pytest.approx((0.7, 0.9, 3.0))
    assert "the affine's spacing, 0.7 x 0.9 x 3 mm, is taken; pixdim is 5 x 0.9 x 3 mm" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_an_error_or_replaced(tmp_path, array, value):
    image = array.astype(np.float32)
    image[1, 2, 0] = image[3, 1, 1] = value
    path = save(tmp_path / "a.nii.gz", image)
    with pytest.raises(VolumeReadError, match=r"a\.nii\.gz: 2 of 105 voxels are NaN or infinite"):
        read_volume(path)
    replaced = read_volume(path, nan=-7.0).data
    assert replaced[1, 2, 0] == replaced[3, 1, 1] == -7
    assert np.array_equal(np.delete(replaced, [0]), np.delete(np.where(np.isfinite(image), image, -7), [0]))


def test_truncated_and_damaged_files(tmp_path):
    array = np.random.default_rng(0).integers(0, 1000, (30, 30, 30)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", array)
    content = path.read_bytes()
    for end in (len(content) - 1, len(content) - 9, len(content) // 2, 40, 12):
        path.write_bytes(content[:end])
        with pytest.raises(VolumeReadError, match=r"a\.nii\.gz is truncated or damaged"):
            read_volume(path)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0x10
    path.write_bytes(flipped)
    with pytest.raises(VolumeReadError, match=r"a\.nii\.gz"):
        read_volume(path)
    plain = save(tmp_path / "b.nii", array)
    plain.write_bytes(plain.read_bytes()[:-2])
    with pytest.raises(VolumeReadError, match=r"b\.nii cannot be read: its end is missing"):
        read_volume(plain)
    for text in (b"", b"hello, this is no image", gzip.compress(b"neither is this")):
        (tmp_path / "c.nii.gz").write_bytes(text)
        with pytest.raises(VolumeReadError, match="is no NIfTI file"):
            read_volume(tmp_path / "c.nii.gz")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_volume(tmp_path / "absent.nii.gz")
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(VolumeReadError, match="known endings"):
        read_volume(tmp_path / "x.png")


def test_labels_are_integers_whatever_their_type(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (6, 5, 4))
    for kind in (np.uint8, np.int16, np.float32, np.float64):
        read = read_volume(save(tmp_path / "l.nii.gz", labels.astype(kind)), label=True)
        assert read.data.dtype == np.uint8
        np.testing.assert_array_equal(read.data, labels)
    far = np.where(labels == 4, 70000, labels).astype(np.int32)
    assert read_volume(save(tmp_path / "l.nii.gz", far), label=True).data.max() == 70000
    scaled = nib.Nifti1Image(labels.astype(np.float64), oblique())
    scaled.set_data_dtype(np.uint8)
    nib.save(scaled, tmp_path / "s.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "s.nii.gz", label=True).data, labels)
    blurred = labels.astype(np.float32)
    blurred[0, 0, 0] = 1.5
    with pytest.raises(VolumeReadError, match=r"1 voxels are no class ids but \[1.5\]"):
        read_volume(save(tmp_path / "l.nii.gz", blurred), label=True)
    blurred[0, 0, 0] = np.nan
    with pytest.raises(VolumeReadError, match="no class ids"):
        read_volume(save(tmp_path / "l.nii.gz", blurred), label=True)


def test_grids_are_compared_and_both_files_named(tmp_path, array):
    a = read_volume(save(tmp_path / "image.nii.gz", array))
    b = read_volume(save(tmp_path / "label.nii.gz", array[:-1]))
    with pytest.raises(
        VolumeReadError, match=r"image\.nii\.gz and .*label\.nii\.gz .*different shapes, 7 x 5 x 3 and 6"
    ):
        check_same_grid(a, b)
    moved = oblique()
    moved[0, 3] += 2.5
    c = read_volume(save(tmp_path / "moved.nii.gz", array, moved))
    with pytest.raises(VolumeReadError, match=r"image\.nii\.gz and .*moved\.nii\.gz .*up to 2\.5 mm apart"):
        check_same_grid(a, c)
    check_same_grid(a, read_volume(save(tmp_path / "same.nii.gz", array, oblique() + 1e-6)))


def test_channels_of_several_files_or_of_one(tmp_path, array):
    paths = [save(tmp_path / f"c{i}.nii.gz", array + i) for i in range(3)]
    volume = read_channels(paths, 3)
    np.testing.assert_array_equal(volume.data, np.stack([array, array + 1, array + 2]))
    assert volume.shape == (7, 5, 3)
    both = save(tmp_path / "all.nii.gz", np.stack([array, array + 1, array + 2], -1))
    np.testing.assert_array_equal(read_channels([both], 3).data, volume.data)
    with pytest.raises(VolumeReadError, match=r"all\.nii\.gz has 3 channel\(s\); 2 are needed"):
        read_channels([both], 2)
    with pytest.raises(VolumeReadError, match="4 dimensions"):
        read_channels([both], 1)
    other = save(tmp_path / "other.nii.gz", array[:, :, :2])
    with pytest.raises(VolumeReadError, match=r"c0\.nii\.gz and .*other\.nii\.gz"):
        read_channels([paths[0], other], 2)


# -- writing --------------------------------------------------------------------------------------------------------

_PLACE = ["dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y"]
_PLACE += ["qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "descrip", "sizeof_hdr"]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_header_is_kept_to_the_byte(tmp_path, array, kind):
    image = kind(array.astype(np.float32), oblique())
    image.header.set_qform(oblique(angle=0.31), 2)  # a qform of its own, as scanners write it
    image.header.set_sform(oblique(), 1)
    image.header["scl_slope"], image.header["cal_max"], image.header["descrip"] = 3.5, 900, b"scan"
    image.header["dim"][5:] = 0  # unused entries are 0 in many programs' files
    image.header["pixdim"][4:] = (2.5, 0, 0, 0)
    image.header.set_xyzt_units("mm", "sec")
    image.header["scl_inter"], image.header["magic"] = 0, image.header.single_magic
    image.header["vox_offset"] = len(image.header.binaryblock) + 4
    content = image.header.binaryblock + b"\0" * 4 + array.astype(np.float32).tobytes(order="F")
    (tmp_path / "a.nii").write_bytes(content)
    original = nib.load(tmp_path / "a.nii").header

    labels = np.random.default_rng(2).integers(0, 4, array.shape)
    written = nib.load(write_volume(tmp_path / "b.nii.gz", labels, read_volume(tmp_path / "a.nii")))
    for name in _PLACE:
        assert written.header[name].tobytes() == original[name].tobytes(), name
    assert written.header.get_data_dtype() == np.uint8
    assert (written.dataobj.slope, written.dataobj.inter, written.header["cal_max"]) == (1, 0, 0)
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "a.nii").affine)
    assert written.header.get_zooms() == nib.load(tmp_path / "a.nii").header.get_zooms()


def test_header_extensions_are_read_over_and_left_out(tmp_path, array):
    image = nib.Nifti1Image(array, oblique())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
    nib.save(image, tmp_path / "a.nii")
    assert b"patient" in (tmp_path / "a.nii").read_bytes()
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.data, array)
    content = write_volume(tmp_path / "b.nii", array, volume).read_bytes()
    assert b"patient" not in content
    assert len(content) == 352 + array.nbytes
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii").dataobj), array)


@pytest.mark.parametrize(
    "values, dtype, expected",
    [
        ([0, 255], None, np.uint8),
        ([0, 256], None, np.int16),
        ([-1, 5], None, np.int16),
        ([0, 40000], None, np.int32),
        ([0, 3], "int16", np.int16),
        ([0.5, 2.0], None, np.float32),
        ([True, False], None, np.uint8),
    ],
)
def test_data_type_holds_the_values(tmp_path, array, values, dtype, expected):
    like = read_volume(save(tmp_path / "a.nii.gz", array))
    data = np.resize(values, array.shape)
    written = nib.load(write_volume(tmp_path / "b.nii.gz", data, like, dtype=dtype))
    assert written.get_data_dtype() == expected
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, array):
    like = read_volume(save(tmp_path / "a.nii.gz", array))
    before = sorted(p.name for p in tmp_path.iterdir())
    for data, options, message in [
        (array[:-1], {}, "shape 6 x 5 x 3; accepted is that of"),
        (np.full(array.shape, 256), dict(dtype="uint8"), "256, which dtype=uint8 does not hold"),
        (np.full(array.shape, 2**40), {}, "accepted are those of 32 bits"),
        (array + 0.5, dict(dtype="uint8"), "without rounding"),
        (array.astype(complex), {}, "complex128"),
        (array, dict(dtype="U3"), "is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_volume(tmp_path / "b.nii.gz", data, like, **options)
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        write_volume(tmp_path / "b.png", array, like)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_several_volumes_in_one_file_and_the_same_bytes_each_time(tmp_path, array):
    like = read_volume(save(tmp_path / "a.nii.gz", array))
    scores = np.random.default_rng(0).random((*array.shape, 4)).astype(np.float32)
    path = write_volume(tmp_path / "b.nii.gz", scores, like)
    written = nib.load(path)
    assert written.shape == (7, 5, 3, 4)
    np.testing.assert_array_equal(np.asarray(written.dataobj), scores)
    np.testing.assert_array_equal(written.affine, like.affine)
    first = path.read_bytes()
    assert write_volume(tmp_path / "c.nii.gz", scores, like).read_bytes() == first
    # the channel of a 4-D file gives a label map of three dimensions
    one = read_volume(path, channel=2)
    assert nib.load(write_volume(tmp_path / "d.nii.gz", array, one)).shape == (7, 5, 3)


# -- other formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_itk_formats_agree_with_nifti(tmp_path, array, ending):
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((10, -20, 30))
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    sitk.WriteImage(image, str(tmp_path / "b.nii.gz"))
    a, b = read_volume(tmp_path / f"a{ending}"), read_volume(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)
    assert a.spacing == pytest.approx((0.7, 0.9, 3.0))
    written = read_volume(write_volume(tmp_path / "c.nii.gz", array, a))
    np.testing.assert_allclose(written.affine, a.affine, atol=1e-5)
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 1


def test_colours_and_four_dimensions_in_other_formats(tmp_path, array):
    colours = sitk.GetImageFromArray(np.zeros((3, 5, 7, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeReadError, match=r"a\.nrrd holds colours or vectors"):
        read_volume(tmp_path / "a.nrrd")
    four = sitk.JoinSeries([sitk.GetImageFromArray(array.T)] * 2)
    sitk.WriteImage(four, str(tmp_path / "b.mha"))
    with pytest.raises(VolumeReadError, match=r"b\.mha has 4 dimensions, 7 x 5 x 3 x 2"):
        read_volume(tmp_path / "b.mha")
    (tmp_path / "c.nrrd").write_bytes(b"NRRD0004\nrubbish")
    with pytest.raises(VolumeReadError, match=r"c\.nrrd cannot be read"):
        read_volume(tmp_path / "c.nrrd")


def write_series(folder, array, *, skip=(), spacing=(0.7, 0.7, 2.5), uid="1.2.826.0.1.3680043.2.1125.1", double=()):
    folder.mkdir(exist_ok=True)
    for z in range(array.shape[2]):
        if z in skip:
            continue
        image = sitk.GetImageFromArray(array[:, :, z].T[None])
        image.SetSpacing(spacing)
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{z + 1}",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0.1.3680043.2.1125",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(str(v) for v in (-100.0, -80.0, 40.0 + spacing[2] * (z - (z in double)))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{uid[-1]}-{z:03d}.dcm"))
        writer.Execute(image)
    return folder


def test_dicom_series(tmp_path):
    array = np.random.default_rng(0).integers(-500, 500, (12, 10, 6)).astype(np.int16)
    volume = read_volume(write_series(tmp_path / "series", array))
    np.testing.assert_array_equal(volume.data, array)
    expected = np.array([[-0.7, 0, 0, 100], [0, -0.7, 0, 80], [0, 0, 2.5, 40], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)
    with pytest.raises(VolumeReadError, match="give the folder"):
        read_volume(next((tmp_path / "series").iterdir()))


def test_dicom_series_with_missing_or_double_slices_or_several_series(tmp_path):
    array = np.zeros((8, 8, 6), np.int16)
    with pytest.raises(VolumeReadError, match=r"gap: slices lie 2\.5 mm apart, but number 2 and 3 5 mm"):
        read_volume(write_series(tmp_path / "gap", array, skip=(2,)))
    with pytest.raises(VolumeReadError, match="twice"):
        read_volume(write_series(tmp_path / "double", array, double=(3,)))
    both = write_series(tmp_path / "both", array)
    write_series(both, array, uid="1.2.826.0.1.3680043.2.1125.2")
    with pytest.raises(VolumeReadError, match="2 DICOM series"):
        read_volume(both)
    (tmp_path / "none").mkdir()
    with pytest.raises(VolumeReadError, match="no DICOM series"):
        read_volume(tmp_path / "none")


def test_names_and_affines():
    assert strip_ending("/a/b.c.nii.gz") == "b.c"
    assert strip_ending("b.NRRD") == "b"
    assert strip_ending("folder") == "folder"
    assert is_volume_file("x.NII.gz")
    assert not is_volume_file("._x.nii.gz")
    assert not is_volume_file("x.png")
    assert spacing_of(oblique()) == pytest.approx((0.7, 0.9, 3.0))
    assert shear_of(oblique()) < 1e-12
    assert Volume(np.zeros((2, 3, 4, 5)), np.eye(4), (1, 1, 1)).shape == (3, 4, 5)
