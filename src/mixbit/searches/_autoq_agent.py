"""AutoQ's agent: the DDPG of stable-baselines3 on a gymnasium environment; needs the extra `autoq`."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed

#: As in NNCF.
HIDDEN, ACTOR_RATE, CRITIC_RATE, BATCH_SIZE, TAU, DISCOUNT = [300, 300], 1e-4, 1e-3, 64, 0.01, 1.0
#: How many of the last episodes the agent remembers.
MEMORY = 20


class Agent:
    """Actor and critic, and a memory of the last episodes."""

    def __init__(self, num_steps: int, num_features: int, seed: int) -> None:
        with _global_generators_seeded(seed):
            self.model = DDPG(
                "MlpPolicy",
                _Spaces(num_features),
                learning_rate=ACTOR_RATE,
                buffer_size=MEMORY * num_steps,
                batch_size=BATCH_SIZE,
                tau=TAU,
                gamma=DISCOUNT,
                policy_kwargs={"net_arch": HIDDEN},
                seed=seed,
                device="cpu",
            )
        self.model.set_logger(Logger(None, []))
        # the library has one rate for both, and would set it again at every training
        self.model.critic.optimizer.param_groups[0]["lr"] = CRITIC_RATE
        self.model._update_learning_rate = lambda optimizers: None  # noqa: ARG005

    def act(self, observation: NDArray[np.float64]) -> float:
        """The actor's action in [0, 1]."""
        action, _ = self.model.predict(observation.astype(np.float32), deterministic=True)
        return float(action[0])

    def learn(self, observations: NDArray[np.float64], actions: NDArray[np.float64], reward: float, seed: int) -> None:
        """Remember an episode of S steps, and train as often.

        Observations are [S, F], actions [S] in [0, 1]; each step gets an equal part of the reward.
        """
        following = np.concatenate([observations[1:], observations[-1:]])
        memory: Any = self.model.replay_buffer
        for step, action in enumerate(actions):
            memory.add(
                observations[step][None].astype(np.float32),
                following[step][None].astype(np.float32),
                self.model.policy.scale_action(np.array([[action]], dtype=np.float32)),
                np.array([reward / len(actions)]),
                np.array([step == len(actions) - 1]),
                [{}],
            )
        with _global_generators_seeded(seed):
            self.model.train(gradient_steps=len(actions), batch_size=BATCH_SIZE)


class _Spaces(gymnasium.Env):
    """The spaces of observations and actions alone: the search runs the episodes, and knows rewards at their end."""

    def __init__(self, num_features: int) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (num_features,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)


@contextmanager
def _global_generators_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, from which the library draws, and restore their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002 the library's own
    set_random_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])
