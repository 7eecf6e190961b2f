"""Camera conventions: golden values of the DreamGaussian family and Zero123, and round trips of every conversion."""

from __future__ import annotations

import math

import pytest
import torch

from anchor4d.core.cameras import (
    Cameras,
    Crop,
    FrontCamera,
    camera_infos,
    from_camera_info,
    from_dreamgaussian,
    from_opengl,
    intrinsics,
    matrix_to_quaternion,
    orbit,
    orbit_poses,
    quaternion_multiply,
    quaternion_to_matrix,
    sample_orbit,
    to_camera_info,
    to_camera_infos,
    to_opengl,
    zero123_vector,
)

# Elevation (positive from below), azimuth, radius; camera centre; the point (0.2, 0.3, 0.1) in the camera; its pixel at 512^2
# with fovy 49.1.
GOLDEN = [
    ((0.0, 0.0, 1.5), (0.0, 0.0, 1.5), (0.2, -0.3, 1.4), (336.06, 135.90)),
    ((-30.0, 90.0, 2.0), (1.7321, 1.0, 0.0), (-0.1, -0.1598, 1.6768), (222.58, 202.59)),
    ((20.0, -45.0, 1.5), (-0.9967, -0.5130, 0.9967), (0.2121, -0.2577, 1.6691), (327.23, 169.46)),
]


@pytest.mark.parametrize(("orbiting", "centre", "local", "pixel"), GOLDEN)
def test_dreamgaussian_golden_values(orbiting, centre, local, pixel):
    elevation, azimuth, radius = orbiting
    cameras = from_dreamgaussian(elevation, azimuth, radius, 49.1, 512, 512)
    point = torch.tensor([0.2, 0.3, 0.1, 1.0])
    found = cameras.world_to_camera[0] @ point
    torch.testing.assert_close(cameras.positions[0], torch.tensor(centre), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:3], torch.tensor(local), atol=1e-4, rtol=0)
    image = cameras.K[0] @ found[:3]
    torch.testing.assert_close(image[:2] / image[2], torch.tensor(pixel), atol=0.05, rtol=0)


def test_focal_length_in_pixels():
    assert math.isclose(float(intrinsics(49.1, 512, 512)[1, 1]), 560.444, abs_tol=1e-2)
    wide = intrinsics(49.1, 640, 512)
    assert wide[0, 0] == wide[1, 1]
    assert wide[:2, 2].tolist() == [320, 256]


def test_orbit_directions():
    """Azimuth 0 is +Z, +90 is +X; positive elevation is above; all aim at the target with the world's up upwards."""
    positions = orbit([0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 90.0], 2.0).positions
    golden = torch.tensor([[0.0, 0, 2], [2, 0, 0], [0, 0, -2], [0, 2, 0]])
    torch.testing.assert_close(positions, golden, atol=1e-6, rtol=0)
    poses = orbit_poses([33.0, -120.0], [25.0, -60.0], 1.3, target=(0.1, -0.2, 0.3))
    rotation = poses[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-6, rtol=0)
    assert (torch.linalg.det(rotation) > 0).all()
    aimed = poses @ torch.tensor([0.1, -0.2, 0.3, 1.0])
    torch.testing.assert_close(aimed[:, :3], torch.tensor([[0, 0, 1.3]]).expand(2, 3), atol=1e-6, rtol=0)
    assert (rotation[:, 1, 1] < 0).all()  # the picture's down has a component against the world's up


@pytest.mark.parametrize(
    ("elevation", "azimuth", "offset", "golden"),
    [(-30.0, 90.0, 0.0, (-0.5236, 1.0, 0.0, 0.0)), (10.0, -90.0, -0.2, (0.1745, -1.0, 0.0, -0.2))],
)
def test_zero123_vectors(elevation, azimuth, offset, golden):
    """The worked values use the DreamGaussian family's elevation, positive from below: ours is its negative."""
    torch.testing.assert_close(zero123_vector(-elevation, azimuth, offset), torch.tensor(golden), atol=1e-4, rtol=0)


def test_zero123_elevation_is_relative_to_the_condition():
    torch.testing.assert_close(
        zero123_vector(10.0, 0.0, condition_elevation=30.0), torch.tensor([math.radians(20), 0.0, 1.0, 0.0]), atol=1e-6, rtol=0
    )
    assert zero123_vector(torch.zeros(4), torch.arange(4.0)).shape == (4, 4)


def random_quats(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_quaternion_round_trip(dtype, tolerance):
    quats = random_quats(500, dtype)
    half_turns = torch.eye(4, dtype=dtype)
    near = torch.tensor([[1e-5, 1, 1e-5, 0], [1e-5, 0, -1, 1e-5], [0, 1, 1, 0], [0.0, -1, 0, 1]], dtype=dtype)
    quats = torch.cat([quats, half_turns, near])
    unit = torch.nn.functional.normalize(quats, dim=-1)
    matrices = quaternion_to_matrix(quats)
    back = matrix_to_quaternion(matrices)
    assert (back[:, 0] >= 0).all()
    torch.testing.assert_close((back * unit).sum(-1).abs(), torch.ones(len(unit), dtype=dtype), atol=tolerance, rtol=0)
    torch.testing.assert_close(quaternion_to_matrix(back), matrices, atol=4 * tolerance, rtol=0)


def test_quaternion_to_matrix_turns_counter_clockwise():
    quarter = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])  # 90 degrees about +Z
    turned = quaternion_to_matrix(quarter) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_quaternion_product_is_the_matrix_product():
    a, b = random_quats(100), random_quats(100).flip(0)
    product = quaternion_to_matrix(quaternion_multiply(a, b))
    torch.testing.assert_close(product, quaternion_to_matrix(a) @ quaternion_to_matrix(b))


def test_opengl_round_trip():
    cameras = orbit([10.0, -140.0], [20.0, -35.0], 1.7, 40.0, 64, 48)
    pose = to_opengl(cameras)
    back = from_opengl(pose, cameras.K, 64, 48)
    torch.testing.assert_close(back.world_to_camera, cameras.world_to_camera, atol=1e-6, rtol=0)
    # Columns right, up, back: at the front the axes are the world's.
    torch.testing.assert_close(to_opengl(orbit([0.0], 0.0, 1.5))[0, :3, :3], torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(pose[:, :3, 3], cameras.positions, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (75.0, 30.0), (-160.0, -80.0), (20.0, 90.0)])
def test_host_camera_round_trip(azimuth, elevation):
    cameras = orbit([azimuth], elevation, 2.2, 37.0, 320, 240)
    info = to_camera_info(cameras)
    back = from_camera_info(info, 320, 240)
    torch.testing.assert_close(back.world_to_camera, cameras.world_to_camera, atol=2e-6, rtol=0)
    torch.testing.assert_close(back.K, cameras.K, atol=1e-3, rtol=0)
    if abs(elevation) < 90:
        by_target = from_camera_info({k: v for k, v in info.items() if k != "quaternion"}, 320, 240)
        torch.testing.assert_close(by_target.world_to_camera, cameras.world_to_camera, atol=2e-5, rtol=0)


def test_a_batch_of_the_host_s_cameras_is_a_camera_each():
    cameras = orbit([0.0, 90.0, -45.0], 10.0, 2.2, 37.0, 320, 240)
    infos = to_camera_infos(cameras)
    assert len(infos) == 3 and infos[1] == to_camera_info(cameras[1:2])
    torch.testing.assert_close(from_camera_info(infos, 320, 240).world_to_camera, cameras.world_to_camera, atol=2e-6, rtol=0)
    assert camera_infos(infos[0]) == [infos[0]] and from_camera_info(infos[0], 4, 4).batch == (1,)
    for wrong in ([], [None]):
        with pytest.raises(ValueError, match="cameras, of which some are none"):
            camera_infos(wrong)


def test_host_camera_defaults_and_refusals():
    plain = {"position": {"x": 0, "y": 0, "z": 2}, "target": {"x": 0, "y": 0, "z": 0}}
    cameras = from_camera_info(plain, 100, 100)
    torch.testing.assert_close(cameras.world_to_camera, orbit([0.0], 0.0, 2.0).world_to_camera, atol=1e-6, rtol=0)
    assert math.isclose(float(cameras.K[0, 1, 1]), 50 / math.tan(math.radians(17.5)), rel_tol=1e-5)
    zoomed = from_camera_info(plain | {"zoom": 2.0}, 100, 100)
    assert math.isclose(float(zoomed.K[0, 1, 1]), 2 * float(cameras.K[0, 1, 1]), rel_tol=1e-5)
    with pytest.raises(ValueError, match="orthographic"):
        from_camera_info(plain | {"cameraType": "orthographic"}, 100, 100)
    with pytest.raises(ValueError, match="coincide"):
        from_camera_info(plain | {"position": plain["target"]}, 100, 100)


def test_crop_and_resize_keep_the_rays():
    """A point's pixel in the crop is its pixel in the picture, moved and scaled."""
    front = FrontCamera(fovy=40.0, distance=1.9, width=640, height=360, cx=300.0, cy=200.0, elevation=12.0)
    crop = Crop(x=150.0, y=-20.0, size=380.0, width=640, height=360)
    point = torch.tensor([0.2, -0.1, 0.3, 1.0])

    def pixel(cameras: Cameras) -> torch.Tensor:
        image = cameras.K[0] @ (cameras.world_to_camera[0] @ point)[:3]
        return image[:2] / image[2]

    whole = pixel(front.cameras(25.0))
    expected = (whole - torch.tensor([150.0, -20.0])) * 190 / 380
    torch.testing.assert_close(pixel(front.cropped(crop, 190, 25.0)), expected, atol=1e-3, rtol=0)
    halved = pixel(front.cameras(25.0).resized(320, 90))
    torch.testing.assert_close(halved, whole * torch.tensor([0.5, 0.25]), atol=1e-3, rtol=0)


def test_centred_view_frames_a_unit_object():
    front = FrontCamera(fovy=20.0, distance=2.5, width=640, height=360, cx=100.0)
    cameras = front.centred(200, margin=1.25)
    edge = cameras.K[0] @ (cameras.world_to_camera[0] @ torch.tensor([0.5, 0.0, 0.0, 1.0]))[:3]
    assert math.isclose(float(edge[0] / edge[2]), 100 + 100 / 1.25, rel_tol=1e-4)
    assert (cameras.width, cameras.height) == (200, 200)


def test_batches():
    cameras = sample_orbit(6, torch.Generator().manual_seed(0), elevation=(-10.0, 40.0), distance=1.8)
    assert cameras.batch == (6,)
    assert len(cameras) == 6
    torch.testing.assert_close(cameras.positions.norm(dim=-1), torch.full((6,), 1.8))
    height = torch.rad2deg(torch.asin(cameras.positions[:, 1] / 1.8))
    assert ((height - 15).abs() <= 25.001).all()
    again = sample_orbit(6, torch.Generator().manual_seed(0), elevation=(-10.0, 40.0), distance=1.8)
    assert torch.equal(again.world_to_camera, cameras.world_to_camera)
    grid = cameras.reshape(2, 3)
    assert grid.batch == (2, 3)
    assert torch.equal(grid[1].world_to_camera, cameras[3:].world_to_camera)
    assert Cameras.cat([cameras[:2], cameras[2:]]).batch == (6,)
    with pytest.raises(ValueError, match="different picture sizes"):
        Cameras.cat([cameras, orbit([0.0], width=8)])
    with pytest.raises(ValueError, match="has batch"):
        Cameras(cameras.world_to_camera, cameras.K[:2], 8, 8)
