"""A recipe resolved against what is installed: the one object that every worker gets and every stage reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from annotators.base import Annotator, Signal, Weight
from pipeline.errors import UsageError
from pipeline.formats import schema
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.rules import RuleError, Rules


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a run makes: the recipe, the layer it writes, and the signals, lineage and columns that follow."""

    recipe: Recipe
    layer: str
    manifest: tuple[str, ...]
    filters: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    signals: dict[str, Signal]
    lineage: list[dict[str, Any]]
    # The columns known before the first annotator runs, after it, after the second, ...
    known: tuple[frozenset[str], ...]
    # The weights that the user named, of each annotator that asks for them; a run's blueprint alone has them.
    chosen: dict[str, tuple[Weight, ...]] = field(default_factory=dict)

    @classmethod
    def ingest(cls, recipe: Recipe, manifest: tuple[str, ...]) -> Blueprint:
        """The base layer. Raises `UsageError` for unknown annotators, filters or columns, and for bad predicates."""
        registry.check_outputs(recipe.annotators)
        registry.foundations(recipe.annotators, recipe.filters)
        writers = [name for name in recipe.annotators if registry.captions(registry.annotator(name))]
        if len(writers) > 1:
            raise UsageError(f"{writers[0]!r} and {writers[1]!r} both write the caption; add one as a layer (annotate)")
        made = cls._of(recipe, schema.BASE_LAYER, manifest, recipe.filters, recipe.stages)
        made.schema()
        made.rules()
        return made

    @classmethod
    def layered(cls, recipe: Recipe, annotator: str) -> Blueprint:
        """A layer on clips that exist, made by one annotator and judged by no rule. Raises `UsageError` where a track
        or a signal of it is in the clips already, or one that it needs is not."""
        together = [*recipe.annotators, annotator]
        registry.check_outputs(together)
        beneath = registry.foundations(together, recipe.filters)[annotator]
        registry.signals(together, recipe.filters)
        bare = Recipe.model_validate(recipe.model_dump() | {"rules": {}, "tasks": {}})
        made = cls._of(bare, annotator, (), (), ((annotator,),))
        # A layer is as old as what it was made from.
        beneath_it = registry.lineage(
            [name for name in recipe.annotators if name in beneath],
            [name for name in recipe.filters if name in beneath],
        )
        return replace(made, lineage=[*beneath_it, *made.lineage])

    @classmethod
    def _of(
        cls,
        recipe: Recipe,
        layer: str,
        manifest: tuple[str, ...],
        filters: tuple[str, ...],
        stages: tuple[tuple[str, ...], ...],
    ) -> Blueprint:
        annotators = [name for stage in stages for name in stage]
        signals = registry.signals(annotators, filters)
        cheap = set(registry.signals([], filters))
        known = [frozenset(schema.kinds({}, manifest)) | cheap]
        for name in annotators:
            known.append(known[-1] | set(registry.annotator(name).signals))
        lineage = registry.lineage(annotators, filters)
        return cls(recipe, layer, manifest, filters, stages, signals, lineage, tuple(known))

    def equipped(self) -> Blueprint:
        """The same for a run: with the weights that the user names, in its lineage too.

        Raises `UsageError` where an annotator asks for some, and he names none that will do.
        """
        makers = {entry["name"] for entry in self.lineage}
        annotators = dict.fromkeys([*self.recipe.annotators, *(name for stage in self.stages for name in stage)])
        chosen = registry.chosen(name for name in annotators if name in makers)
        named = {
            name: registry.lineage_of((*registry.annotator(name).weights, *weights)) for name, weights in chosen.items()
        }
        lineage = [entry | named.get(entry["name"], {}) for entry in self.lineage]
        return replace(self, lineage=lineage, chosen=chosen)

    def made(self, name: str) -> Annotator:
        """An annotator with its weights loaded, of a blueprint that is `equipped`. Raises what it raises when they are
        not to be had."""
        owner: Any = registry.annotator(name)
        made: Annotator = owner(self.chosen[name]) if name in self.chosen else owner()
        return made

    def schema(self) -> pa.Schema:
        """The catalog columns that this run writes."""
        return schema.full(self.signals, self.manifest)

    def rules(self) -> Rules:
        """The recipe's rules, asked in the order in which their signals become known."""
        try:
            return Rules(self.recipe.rules, self.recipe.fitness, schema.kinds(self.signals, self.manifest), self.known)
        except RuleError as error:
            maker = registry.maker(error.column) if error.column else None
            if maker:
                raise UsageError(
                    f"the rule or task {str(error).partition(':')[0]!r} asks for {error.column!r}, which {maker} "
                    f"measures: add {maker} to the recipe's stages or filters, or give `rules` and `tasks` of your own "
                    "(without them, those of the default recipe hold)"
                ) from error
            raise UsageError(f"recipe, rule or task {error}") from error

    def made_by(self, names: list[str]) -> list[dict[str, Any]]:
        """The lineage of these annotators and filters."""
        return [entry for entry in self.lineage if entry["name"] in names]
