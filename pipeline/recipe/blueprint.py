"""A recipe resolved against the installed annotators and filters, for every worker and stage of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from annotators.base import Annotator, Signal, Weight
from pipeline.errors import UsageError
from pipeline.formats import schema
from pipeline.formats.records import LineageEntry
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
    lineage: list[LineageEntry]
    # The columns known before the first annotator runs, after it, after the second, ...
    known_columns: tuple[frozenset[str], ...]
    # The weights that the user named, of each annotator that asks for them; only a run's blueprint has them.
    chosen: dict[str, tuple[Weight, ...]] = field(default_factory=dict)

    @classmethod
    def for_ingest(cls, recipe: Recipe, manifest: tuple[str, ...]) -> Blueprint:
        """The base layer. Raises `UsageError` for unknown annotators, filters or columns, and for bad predicates."""
        registry.check_outputs(recipe.annotators)
        registry.find_foundations(recipe.annotators, recipe.filters)
        writers = [name for name in recipe.annotators if registry.declare(registry.load_annotator(name)).caption]
        if len(writers) > 1:
            raise UsageError(f"{writers[0]!r} and {writers[1]!r} both write the caption; add one as a layer (annotate)")
        blueprint = cls._build(recipe, schema.BASE_LAYER, manifest, recipe.filters, recipe.stages)
        blueprint.schema()
        blueprint.rules()
        return blueprint

    @classmethod
    def for_layer(cls, recipe: Recipe, annotator: str) -> Blueprint:
        """A layer on existing clips, made by one annotator and judged by no rule.

        Raises `UsageError` if the clips already have one of its tracks or signals, or lack one that it needs.
        """
        annotators = [*recipe.annotators, annotator]
        registry.check_outputs(annotators)
        foundations = registry.find_foundations(annotators, recipe.filters)[annotator]
        registry.collect_signals(annotators, recipe.filters)
        layer_recipe = Recipe.model_validate(recipe.model_dump() | {"rules": {}, "tasks": {}})
        blueprint = cls._build(layer_recipe, annotator, (), (), ((annotator,),))
        # A layer is outdated when what it was made from is.
        foundation_lineage = registry.build_lineage(
            [name for name in recipe.annotators if name in foundations],
            [name for name in recipe.filters if name in foundations],
        )
        return replace(blueprint, lineage=[*foundation_lineage, *blueprint.lineage])

    @classmethod
    def _build(
        cls,
        recipe: Recipe,
        layer: str,
        manifest: tuple[str, ...],
        filters: tuple[str, ...],
        stages: tuple[tuple[str, ...], ...],
    ) -> Blueprint:
        annotators = [name for stage in stages for name in stage]
        signals = registry.collect_signals(annotators, filters)
        cheap = set(registry.collect_signals([], filters))
        known_columns = [frozenset(schema.rule_columns({}, manifest)) | cheap]
        for name in annotators:
            known_columns.append(known_columns[-1] | set(registry.load_annotator(name).signals))
        lineage = registry.build_lineage(annotators, filters)
        return cls(recipe, layer, manifest, filters, stages, signals, lineage, tuple(known_columns))

    def with_weights(self) -> Blueprint:
        """A copy for a run: with the weights that the user names, also in its lineage.

        Raises `UsageError` if an annotator asks for weights and the user names none that fit.
        """
        makers = {entry["name"] for entry in self.lineage}
        annotators = dict.fromkeys([*self.recipe.annotators, *(name for stage in self.stages for name in stage)])
        chosen = registry.choose_weights(name for name in annotators if name in makers)
        chosen_lineage = {
            name: registry.describe_weights((*registry.load_annotator(name).weights, *weights))
            for name, weights in chosen.items()
        }
        lineage: list[LineageEntry] = [
            {**entry, **chosen_lineage[entry["name"]]} if entry["name"] in chosen_lineage else entry
            for entry in self.lineage
        ]
        return replace(self, lineage=lineage, chosen=chosen)

    def build_annotator(self, name: str) -> Annotator:
        """An annotator with its weights loaded; the blueprint must come from `with_weights`. Raises what the annotator
        raises when they are not available."""
        owner: Any = registry.load_annotator(name)
        annotator: Annotator = owner(self.chosen[name]) if name in self.chosen else owner()
        return annotator

    def clips_per_call(self, stage_index: int) -> int:
        """How many clips the stage annotates at once."""
        stage = (registry.declare(registry.load_annotator(name)) for name in self.stages[stage_index])
        return max((annotator.clips_per_call for annotator in stage), default=1)

    def schema(self) -> pa.Schema:
        """The catalog columns that this run writes."""
        return schema.build_schema(self.signals, self.manifest)

    def rules(self) -> Rules:
        """The recipe's rules, evaluated in the order in which their signals become known."""
        try:
            return Rules(
                self.recipe.rules,
                self.recipe.fitness,
                schema.rule_columns(self.signals, self.manifest),
                self.known_columns,
            )
        except RuleError as error:
            maker = registry.find_maker(error.column) if error.column else None
            if maker:
                raise UsageError(
                    f"the rule or task {str(error).partition(':')[0]!r} asks for {error.column!r}, which {maker} "
                    f"measures: add {maker} to the recipe's stages or filters, or give `rules` and `tasks` of your own "
                    "(without them, those of the default recipe hold)"
                ) from error
            raise UsageError(f"recipe, rule or task {error}") from error

    def select_lineage(self, names: list[str]) -> list[LineageEntry]:
        """The lineage of these annotators and filters."""
        return [entry for entry in self.lineage if entry["name"] in names]
