"""Sparse control nodes: keyframed rigid motions on the surface, blended linearly onto the Gaussians.

A few hundred nodes carry the motion of any number of Gaussians: what makes the CPU path fast and rigidity cheap.
Source of the idea: embedded deformation graphs; SC-GS for Gaussians.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cameras import quaternion_multiply, quaternion_to_matrix
from ..gaussians import Gaussians
from ..mesh import Mesh
from ..optimiser import Group, one_thread
from . import fused
from .base import DeformationField, Handles, StaticScene, register_field
from .graph import graph_from_mesh, graph_from_points, spaced_binding
from .skeleton import matrix_to_rotation_vector
from .stretch import Planes, stretched

#: Share of its Gaussians' change in size with which a node begins the next frame, where frames are tracked one by one.
KEPT_SIZE = 0.8


class NodeField(DeformationField):
    """A field whose nodes on the surface move rigidly, and whose Gaussians move by the blend of their nodes' motions.

    ``x' = sum_k w_k (R_k (x - p_k) + p_k + t_k)``. A subclass says how nodes move (:meth:`node_motion`), between key times by
    :meth:`_keyed`.

    Attributes:
        keys: number of key times.
        loop: key ``keys`` is key 0 again.
        anchored: key 0 never moves.
        stretch: covariances follow the surface where it stretches (:mod:`.stretch`), without a gradient of its own; what moves
            rigidly is as without.
    """

    fixed_count = True
    offers = frozenset({"handles"})
    keys: int
    loop: bool
    anchored: bool
    stretch = False
    node_positions: Tensor  # (M, 3)
    bind_index: Tensor  # (N, K)
    bind_weight: Tensor  # (N, K)
    pairs: Tensor  # (E, 2)

    def stretching(self) -> NodeField:
        field = type(self)(**{**self.arguments, "stretch": True}).to(self.pairs.device)
        field.load_state_dict(self.state_dict())
        return field

    def _bind(self, nodes: int, points: int, edges: int, neighbours: int) -> None:
        """Room for the nodes and what is bound to them."""
        self.register_buffer("node_positions", torch.zeros(nodes, 3))
        self.register_buffer("bind_index", torch.zeros(points, neighbours, dtype=torch.int64))
        self.register_buffer("bind_weight", torch.zeros(points, neighbours))
        self.register_buffer("pairs", torch.zeros(edges, 2, dtype=torch.int64))
        self._blend: tuple[Any, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor] | None = None
        self._places: tuple[fused.Lists, fused.Lists] | None = None
        self._planes: tuple[Any, Planes, Gaussians] | None = None

    def check(self, count: int) -> None:
        if len(self.bind_index) != count:
            raise ValueError(f"{self.name} bound to {len(self.bind_index)} Gaussians, not {count}")
        for name, index in (("bind_index", self.bind_index), ("pairs", self.pairs)):
            # Sparse products and scatters reach where these say without looking.
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self.node_positions):
                raise ValueError(f"{self.name}: {name} names nodes that do not exist")
        if self.keys < 1 or not len(self.node_positions):
            raise ValueError(f"{self.name}: no nodes or no key times")

    def select(self, index: Tensor) -> Self:
        bound, weight = self.bind_index[index.to(self.bind_index.device)], self.bind_weight[index.to(self.bind_index.device)]
        field = type(self)(**{**self.arguments, "points": len(bound)}).to(bound.device)
        field.load_state_dict({**self.state_dict(), "bind_index": bound, "bind_weight": weight})
        return field

    def carrier(self, gaussians: Gaussians, points: Tensor, mesh: Mesh | None = None) -> Callable[[Tensor], Tensor]:
        """As :meth:`on_surface` binds Gaussians, points are bound along the mesh, or else along the Gaussians."""
        graph = graph_from_points(gaussians.means) if mesh is None else graph_from_mesh(mesh.to("cpu"))[0]
        nodes, _ = graph.nearest(self.node_positions.cpu().double().numpy())
        index, weight, _, _ = spaced_binding(graph, nodes, points, None, self.bind_index.shape[1])
        index, weight = index.to(points.device), weight.to(points)[..., None]

        def carried(tau: Tensor) -> Tensor:  # (B,) -> (B, V, 3)
            positions, quats = self.motion_of_handles(tau)
            matrices = quaternion_to_matrix(quats)
            offsets = positions - (matrices @ self.node_positions[:, :, None])[..., 0]
            motions = torch.cat([matrices, offsets[..., None]], -1).flatten(2)  # (B, M, 12)
            blend = (motions[:, index] * weight).sum(2).unflatten(-1, (3, 4))  # (B, V, 3, 4)
            return (blend[..., :3] @ points[:, :, None])[..., 0] + blend[..., 3]

        return carried

    def key_weights(self, tau: Tensor) -> Tensor:  # (B,) -> (B, keys)
        """Catmull-Rom weights of the keys at times in [0, 1]; exactly one key at its own time."""
        span = self.keys if self.loop else max(self.keys - 1, 1)
        u = tau.detach() * span
        left = u.floor().clamp(max=span - 1) if not self.loop else u.floor()
        f = (u - left)[:, None]
        basis = torch.cat(
            [-f + 2 * f**2 - f**3, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, -(f**2) + f**3], 1
        ) / 2  # fmt: skip
        index = left.long()[:, None] + torch.arange(-1, 3, device=tau.device)
        index = index % self.keys if self.loop else index.clamp(0, self.keys - 1)
        return torch.zeros(len(tau), self.keys, device=tau.device).scatter_add_(1, index, basis)

    def _keyed(self, parameter: Tensor, weights: Tensor) -> Tensor:  # (keys, M, C), (B, keys) -> (B, M, C)
        return torch.tensordot(weights[:, 1:], parameter[1:], 1) if self.anchored else torch.tensordot(weights, parameter, 1)

    def _time_smoothing(self, amount: float) -> Tensor:  # (keys, keys)
        """The inverse of (I + s L) over the keys, an anchored key held still."""
        step = torch.eye(self.keys, device=self.pairs.device)
        step = step - step.roll(1, 1)
        if not self.loop:
            step = step[:-1]
        time = torch.eye(self.keys, device=self.pairs.device) + amount * step.T @ step
        if self.anchored:
            time[0], time[:, 0] = 0, 0
            time[0, 0] = 1
        return torch.linalg.inv(time)

    def handles(self) -> Handles:
        ends = self._lists()[1] if fused.available(self.pairs.device) else None
        return Handles(self.node_positions, self.pairs, ends)

    def motion_of_handles(self, tau: Tensor) -> tuple[Tensor, Tensor]:  # (B,) -> (B, M, 3), (B, M, 4)
        return self.node_motion(tau)[:2]

    def node_motion(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of the nodes at times (B,): positions (B, M, 3), rotations (B, M, 4), log scales (B, M, 3), opacity logits (B, M)."""
        raise NotImplementedError

    def node_colors(self, tau: Tensor) -> Tensor | None:
        """What nodes add to the constant harmonics around them at times (B,), (B, M, 3); None where colours stay."""
        return None

    def forward(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        if len(gaussians) != self.bind_index.shape[0]:
            raise ValueError(
                f"its nodes were bound to {self.bind_index.shape[0]} Gaussians, not {len(gaussians)}; build the field again"
            )
        if fused.available(tau.device) and gaussians.means.dtype == torch.float32:
            return self._fused(gaussians, tau)
        batch, nodes = len(tau), len(self.node_positions)
        positions, quats, log_scales, opacity_logits = self.node_motion(tau)
        colors = self.node_colors(tau)
        matrices = quaternion_to_matrix(quats)
        offsets = positions - (matrices @ self.node_positions[:, :, None])[..., 0]
        # x' = sum_k w_k (R_k x + o_k) is linear in R and o: with w x folded into the sparse matrix it is one product.
        motions = torch.cat([matrices, offsets[..., None]], -1)  # (B, M, 3, 4)
        affine, plain = self._blend_matrices(gaussians.means)
        if gaussians.means.requires_grad:
            blend = _Blend.apply(motions.movedim(0, 1).reshape(nodes, -1), *plain).reshape(-1, batch, 3, 4)
            moved = (blend[..., :3] * gaussians.means[:, None, None, :]).sum(-1) + blend[..., 3]
        else:
            moved = _Blend.apply(motions.permute(3, 1, 0, 2).reshape(4 * nodes, batch * 3), *affine)
        others = [quats, log_scales]
        if opacity_logits is not None:
            others.append(opacity_logits[..., None])
        if colors is not None:
            others.append(colors)
        blended = [
            _Blend.apply(x.movedim(0, 1).reshape(nodes, -1), *plain).reshape(-1, batch, x.shape[-1]).movedim(1, 0)
            for x in others
        ]
        rest_quats, grown = gaussians.quats, blended[1]
        if self.stretch:
            rest_quats, more = stretched(gaussians.quats, grown, self._planes_of(gaussians), positions)
            grown = grown + more
        return Gaussians(
            means=moved.reshape(-1, batch, 3).movedim(1, 0),
            quats=quaternion_multiply(F.normalize(blended[0], dim=-1), rest_quats),
            log_scales=gaussians.log_scales + grown,
            opacity_logits=(
                gaussians.opacity_logits.expand(batch, -1)
                if opacity_logits is None
                else gaussians.opacity_logits + blended[2][..., 0]
            ),
            sh=gaussians.sh.expand(batch, *gaussians.sh.shape) if colors is None else _tinted(gaussians.sh, blended[-1]),
        )

    def _fused(self, gaussians: Gaussians, tau: Tensor) -> Gaussians:
        """:meth:`forward` by the graphics card's own kernels."""
        bound, motion = self._lists()[0], self.node_motion(tau)
        made = fused.deform(gaussians, self.bind_index, self.bind_weight, bound, self.node_positions, motion)
        if (colors := self.node_colors(tau)) is not None:  # blended as scales are, by the same kernels
            blank = replace(gaussians.detach(), log_scales=torch.zeros_like(gaussians.log_scales))
            keyed = motion[0].detach(), motion[1].detach(), colors, None
            added = fused.deform(blank, self.bind_index, self.bind_weight, bound, self.node_positions, keyed).log_scales
            made = replace(made, sh=_tinted(gaussians.sh, added))
        if self.stretch:
            own = made.log_scales - gaussians.log_scales
            quats, more = stretched(made.quats, own, self._planes_of(gaussians), motion[0])
            made = replace(made, quats=quats, log_scales=made.log_scales + more)
        return made

    def _planes_of(self, rest: Gaussians) -> Planes:  # (N, ...)
        key = [(t.data_ptr(), t._version, t.device) for t in (rest.quats, rest.log_scales)]
        if self._planes is None or self._planes[0] != key:
            rest = rest.detach()  # held, so that its address stays its own
            self._planes = key, Planes.of(rest, self.bind_index, self.bind_weight, self.node_positions), rest
        return self._planes[1]

    def _lists(self) -> tuple[fused.Lists, fused.Lists]:
        """Where each node occurs in the binding and in the pairs."""
        if self._places is None:
            nodes = len(self.node_positions)
            self._places = fused.places(self.bind_index, nodes), fused.places(self.pairs, nodes)
        return self._places

    def _blend_matrices(self, means: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The binding as sparse matrices with their transposes: (N, 4 M) with homogeneous positions folded in, and (N, M)."""
        key = (means.data_ptr(), means._version, means.device)
        if self._blend is None or self._blend[0] != key:
            points, k = self.bind_index.shape
            nodes = len(self.node_positions)
            rows = torch.arange(points, device=means.device).repeat_interleave(k)
            columns, value = self.bind_index.reshape(-1), self.bind_weight.reshape(-1)
            homogeneous = torch.cat([means.detach(), torch.ones_like(means[:, :1])], -1)[rows]  # (N K, 4)
            plain = _sparse(rows, columns, value, (points, nodes))
            affine = _sparse(
                rows.repeat(4),
                (columns + nodes * torch.arange(4, device=means.device)[:, None]).reshape(-1),
                (homogeneous * value[:, None]).T.reshape(-1),
                (points, 4 * nodes),
            )
            self._blend = key, affine, plain, means.detach()  # held, so that its address stays its own
        return self._blend[1], self._blend[2]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._blend = self._places = self._planes = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own matrices: those of a GPU cannot be copied (sparse storage), and the address they are known by
        # is that of other Gaussians.
        return {**self.__dict__, "_blend": None, "_places": None, "_planes": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._blend = self._places = self._planes = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@register_field
class ControlNodes(NodeField):
    """Nodes with a translation, rotation, log-scale change and optionally changes of opacity and colour at each key time.

    Key times are the clip's frame times; between them values follow a Catmull-Rom spline. A Gaussian moves by the blend of
    its nodes' rigid motions: ``x' = sum_k w_k (R_k (x - p_k) + p_k + t_k)``.

    Use :meth:`on_surface` to place nodes; the constructor only makes an unplaced field of given sizes.

    Args:
        nodes, points, edges: numbers of nodes, of bound Gaussians and of node pairs.
        keys: number of key times.
        neighbours: nodes that each Gaussian is bound to.
        loop: key ``keys`` is key 0 again.
        opacity: whether opacity moves too: parts of the object appear and vanish.
        color: whether colours change over time: what each node adds to the constant harmonics around it.
        anchored: key 0 never moves: the object at tau = 0 is the canonical one exactly.
        stretch: covariances follow the surface where it stretches.
        lr: learning rate of translations, in world units; rotations take ``rotation_lr`` radians.
        smooth_space, smooth_time: how far a step on one node spreads over the surface and over time, see :class:`Group`.
    """

    name = "control-nodes"
    tracks_frames = True
    former = frozenset({"pair_weight"})  # that rigidity gave the pairs while they were fitted, in version 0.1

    def __init__(
        self,
        nodes: int,
        points: int,
        edges: int,
        keys: int,
        neighbours: int = 4,
        loop: bool = False,
        opacity: bool = False,
        color: bool = False,
        anchored: bool = True,
        stretch: bool = False,
        spacing: float = 0.05,
        lr: float = 2e-3,
        rotation_lr: float = 2e-2,
        smooth_space: float = 8.0,
        smooth_time: float = 1.0,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = dict(
            nodes=nodes, points=points, edges=edges, keys=keys, neighbours=neighbours, loop=loop, opacity=opacity, color=color,
            anchored=anchored, stretch=stretch, spacing=spacing, lr=lr, rotation_lr=rotation_lr, smooth_space=smooth_space,
            smooth_time=smooth_time,
        )  # fmt: skip
        self.keys, self.loop, self.anchored, self.stretch, self.spacing = keys, loop, anchored, stretch, spacing
        self.lr, self.rotation_lr = lr, rotation_lr
        self.smooth_space, self.smooth_time = smooth_space, smooth_time
        self.translations = nn.Parameter(torch.zeros(keys, nodes, 3))
        self.rotations = nn.Parameter(torch.zeros(keys, nodes, 3))  # rotation vectors, radians
        self.log_scales = nn.Parameter(torch.zeros(keys, nodes, 3))
        self.opacity_logits = nn.Parameter(torch.zeros(keys, nodes)) if opacity else None
        self.colors = nn.Parameter(torch.zeros(keys, nodes, 3)) if color else None
        self._bind(nodes, points, edges, neighbours)

    @classmethod
    def build(cls, scene: StaticScene, mesh: Mesh | None = None, **settings: Any) -> Self:
        """As everywhere; a key for each frame. The mesh says which parts belong together."""
        return cls.on_surface(scene.gaussians, scene.frames, mesh=mesh, loop=scene.loop, **settings)

    @classmethod
    def on_surface(
        cls,
        gaussians: Gaussians,
        keys: int,
        *,
        mesh: Mesh | None = None,
        faces: Tensor | None = None,  # (N,)
        nodes: int = 300,
        neighbours: int = 4,
        **arguments: Any,
    ) -> Self:
        """Nodes spread over the object's surface, every Gaussian bound to the nearest along it.

        Args:
            gaussians: the canonical set.
            keys: number of key times.
            mesh: the surface; without one the Gaussians' own neighbourhoods stand in.
            faces: the face that each Gaussian was sampled from, (N,); keeps touching parts apart.
            nodes: how many; fewer where the surface has fewer points.
        """
        component = None
        if mesh is not None:
            graph, face_component = graph_from_mesh(mesh)
            if faces is not None:
                component = face_component[faces.cpu().numpy()]
        else:
            graph = graph_from_points(gaussians.means)
        chosen = graph.spread(nodes)
        index, weight, pairs, spacing = spaced_binding(graph, chosen, gaussians.means, component, neighbours)
        field = cls(
            nodes=len(chosen), points=len(gaussians), edges=len(pairs), keys=keys, neighbours=index.shape[1],
            spacing=spacing, **arguments,
        )  # fmt: skip
        field.node_positions.copy_(torch.from_numpy(graph.points[chosen]))
        field.bind_index.copy_(index)
        field.bind_weight.copy_(weight)
        field.pairs.copy_(pairs)
        return field.to(gaussians.device)

    @property
    def changes(self) -> frozenset[str]:
        more = {"opacity_logits": self.opacity_logits, "sh": self.colors}
        return super().changes | {name for name, parameter in more.items() if parameter is not None}

    def node_motion(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if fused.available(tau.device):
            return fused.node_motion(
                tau, self.node_positions, self.translations, self.rotations, self.log_scales, self.opacity_logits, self.loop,
                self.anchored,
            )  # fmt: skip
        weights = self.key_weights(tau)
        opacity = self.opacity_logits
        return (
            self.node_positions + self._keyed(self.translations, weights),
            rotation_vector_to_quaternion(self._keyed(self.rotations, weights)),
            self._keyed(self.log_scales, weights),
            None if opacity is None else self._keyed(opacity[..., None], weights)[..., 0],
        )

    def node_colors(self, tau: Tensor) -> Tensor | None:
        return None if self.colors is None else self._keyed(self.colors, self.key_weights(tau))

    def parameter_groups(self, whole_clip: bool = True, smoothing: float = 1.0) -> list[Group]:
        space, time = self._smoothing(smoothing)

        def smooth(x: Tensor) -> Tensor:  # (keys, M, ...)
            with one_thread():
                y = torch.einsum("mn,tn...->tm...", space, x)
                return torch.einsum("st,tm...->sm...", time, y) if whole_clip else y

        groups = [
            Group("translations", self.translations, self.lr, smooth),
            Group("rotations", self.rotations, self.rotation_lr, smooth),
            Group("log_scales", self.log_scales, self.rotation_lr / 4, smooth),
        ]
        if self.opacity_logits is not None:
            groups.append(Group("opacity_logits", self.opacity_logits, 5e-2, smooth))
        if self.colors is not None:
            groups.append(Group("colors", self.colors, 3e-2, smooth))
        return groups

    def _smoothing(self, factor: float) -> tuple[Tensor, Tensor]:
        """Inverses of (I + s L) over the node graph (M, M) and over the keys (keys, keys), an anchored key held still."""
        nodes, device = len(self.node_positions), self.pairs.device
        i, j = self.pairs.unbind(1)
        laplacian = torch.zeros(nodes, nodes, device=device)
        laplacian[i, j] = laplacian[j, i] = -1.0
        laplacian.diagonal().copy_(-laplacian.sum(1))
        laplacian /= laplacian.diagonal().mean()
        with one_thread():
            space = torch.linalg.inv(torch.eye(nodes, device=device) + factor * self.smooth_space * laplacian)
        return space, self._time_smoothing(factor * self.smooth_time)

    @torch.no_grad()
    def set_motion(self, positions: Tensor, rotations: Tensor) -> None:  # (keys, M, 3), (keys, M, 3, 3)
        """Sets where the nodes are at each key time, and their rotation matrices."""
        self.translations.copy_(positions - self.node_positions.to(positions))
        self.rotations.copy_(matrix_to_rotation_vector(rotations))

    @torch.no_grad()
    def continue_motion(self, frame: int, source: int, before: int, momentum: float) -> None:
        for parameter in (self.translations, self.rotations):
            parameter[frame] = parameter[source] + momentum * (parameter[source] - parameter[before])
        # Pictures hardly tell a Gaussian of less than a pixel from a smaller one: sizes that went on from frame to frame would
        # run away, and the surface fall apart into dots where it is drawn larger than it was fitted.
        self.log_scales[frame] = KEPT_SIZE * self.log_scales[source]


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A compressed sparse matrix and its transpose."""
    index = torch.stack([rows, columns])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch announces that its CSR support is in beta
        matrix = torch.sparse_coo_tensor(index, values, shape, check_invariants=False)
        return matrix.coalesce().to_sparse_csr(), matrix.t().coalesce().to_sparse_csr()


def _tinted(sh: Tensor, added: Tensor) -> Tensor:  # (N, K, 3), (B, N, 3) -> (B, N, K, 3)
    """Harmonics with something added to the constant ones."""
    first = sh[:, :1] + added[:, :, None]
    return torch.cat([first, sh[:, 1:].expand(len(added), -1, -1, -1)], 2)


class _Blend(torch.autograd.Function):
    """Sparse matrix product whose backward uses the stored transpose: fast and the same on every run."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return matrix @ values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.transpose @ gradient.contiguous(), None, None


def rotation_vector_to_quaternion(vector: Tensor) -> Tensor:  # (..., 3) radians -> (..., 4) wxyz
    """Exponential map; smooth at zero."""
    half = vector / 2
    angle = (half.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    return torch.cat([angle.cos(), half * (angle.sin() / angle)], -1)
