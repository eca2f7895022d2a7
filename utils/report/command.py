"""The command `python -m utils.report`: reads finished runs, and writes a report or compares two folders in words."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.config import ReportConfig
from utils.report.compare import COLUMNS as FOLDER_COLUMNS
from utils.report.compare import Answer, compare_folders, comparison_of_folders, rows_of_folders, sentence, subject
from utils.report.evidence import find_baseline, find_evidence, parse_full_data
from utils.report.figures import CAPTIONS, Effect, draw_figures, draw_forest, drawing, save
from utils.report.groups import Group, comparisons, group_runs
from utils.report.report import (
    COMPARISON_COLUMNS,
    FINDING_COLUMNS,
    GROUP_COLUMNS,
    comparison_rows,
    comparison_table,
    differing_table,
    finding_rows,
    finding_sentences,
    finding_table,
    group_rows,
    group_table,
    left_out,
    provenance_table,
    search_table,
    shared_table,
    student_table,
)
from utils.report.runs import find_runs
from utils.report.tables import Table, csv_text, document
from utils.report.web_page import Picture, web_page
from utils.report.words import value_words, words_of
from utils.run.wandb_log import NoTracker, RunMetadata, start_tracker
from utils.system.files import make_folder, write_text
from utils.system.log import log, start_log

CONDITIONS = "device_name arithmetic torch torchvision python epochs batch_size input_size git_commit".split()


def main(argv: list[str] | None = None) -> None:
    """Run the command: write a report into the folder --output, or print the sentences of --compare."""
    config = ReportConfig.parse(argv)
    start_log()
    if config.compare is None:
        write_report(config)
    else:
        answer_in_words(config, *config.compare)


def answer_in_words(config: ReportConfig, first: str, second: str) -> None:
    """Compare two folders of runs; print a sentence for each comparison, and write compare.* if --output is given."""
    answer = compare_folders(first, second, frozenset(config.ignore), frozenset(config.searched))
    sentences = [sentence(verdict, *answer.names) for verdict in answer.verdicts]
    notes = [*answer.left_out, *overlooked(config)]
    for line in [*sentences, *notes]:
        log.info("%s", line)
    if config.output:
        folder = Path(config.output)
        make_folder(folder)
        table = comparison_of_folders(answer)
        listed = "\n".join(f"* {line}" for line in [*sentences, *notes])
        write_text(folder / "compare.md", f"# {table.title}\n\n{listed}\n\n{table.markdown()}")
        write_text(folder / "compare.tex", document([table]))
        write_text(folder / "compare.csv", csv_text(FOLDER_COLUMNS, rows_of_folders(answer)))
        with drawing():
            effects = [Effect(subject(verdict), verdict.difference) for verdict in answer.verdicts]
            picture = save(draw_forest(effects, answer.names[0], answer.names[1]), folder / "differences")
        write_text(folder / "compare.html", comparison_page(answer, table, sentences, notes, [picture]))
        publish(config, {table.title: (list(table.columns), [list(row) for row in table.rows])}, [picture])
        log.info("tables and figure in %s", folder / "compare.html")


def comparison_page(answer: Answer, table: Table, sentences: list[str], notes: list[str], pictures: list[Path]) -> str:
    """Return the text of compare.html."""
    sides = [[pair.ours for pair in answer.verdicts], [pair.theirs for pair in answer.verdicts]]
    groups = [
        replace(group, words=(*group.words, f"in {name}"))
        for name, side in zip(answer.names, sides, strict=True)
        for group in {id(group): group for group in side}.values()
    ]
    first, second = answer.names
    summary = [f"{first} is {answer.first}; {second} is {answer.second}.", "Top-1 of the last epoch is compared."]
    return web_page(
        f"Is {second} better than {first}?",
        summary,
        [*notes, *accepted_labels(groups)],
        sentences,
        [Picture(path.with_suffix(".svg"), CAPTIONS[path.stem]) for path in pictures],
        [table, *background(groups)],
    )


def accepted_labels(groups: list[Group]) -> list[str]:
    """Return a warning for each group whose labels seemed wrong and were accepted all the same."""
    return [
        f"{group.name}: the labels seem wrong, but --accept-labels let the runs go on: {group.accepted}"
        for group in groups
        if group.accepted
    ]


def background(groups: list[Group]) -> list[Table]:
    """Return the tables of settings and of the origin of the runs, for the web pages."""
    differing = differing_table(groups)
    return [*([differing] if differing else []), shared_table(groups), provenance_table(groups)]


def overlooked(config: ReportConfig) -> list[str]:
    """Return sentences that name the settings of --ignore and --searched."""
    sentences = []
    if config.ignore:
        sentences.append(f"Differences in these settings were overlooked: {', '.join(config.ignore)}.")
    if config.searched:
        sentences.append(
            f"These settings were searched, and their values picked by top-1 on the validation set, which makes this "
            f"top-1 too good by an unknown amount: {', '.join(config.searched)}."
        )
    return sentences


def write_report(config: ReportConfig) -> None:
    """Read the runs, group and compare them, and write the report into the folder --output."""
    full = parse_full_data(config.full_data)
    found = find_runs(config.runs)
    groups, repeated = group_runs(
        found.finished, frozenset(config.ignore), config.random, searched=frozenset(config.searched)
    )
    baseline = find_baseline(groups, config.random)
    findings = find_evidence(groups, baseline, full)
    compared = comparisons(groups)

    shown = [group_table(groups)] if groups else []
    shown += [finding_table(findings)] if findings else []
    shown += [table for table in [student_table(groups), search_table(groups)] if table]
    axes = [axis for axis in ("images", "regime", "student", "settings") if any(c.axis == axis for c in compared)]
    pairs = [comparison_table(compared, axis) for axis in axes]
    rest = left_out(found, repeated)

    folder = Path(config.output or "")
    make_folder(folder)
    effects = [Effect(found.group.name, found.difference) for found in findings]
    pictures = draw_figures(folder, groups, effects, baseline or "") if groups else []
    answers = finding_sentences(findings)
    notes = overlooked(config)
    counts = (
        f"{len(found.finished)} finished runs in {len(groups)} groups, {len(found.unfinished)} unfinished, "
        f"{len(found.damaged)} damaged, {len(repeated)} repeated"
    )
    write_text(folder / "report.md", page(groups, [*shown, *pairs, *rest], pictures, notes, answers))
    web = web_page(
        "Report",
        [f"{counts}.", *(["No run is finished."] if not groups else []), *shared_sentence(groups)],
        [*notes, *accepted_labels(groups)],
        answers,
        [Picture(path.with_suffix(".svg"), CAPTIONS[path.stem]) for path in pictures],
        [*shown, *pairs, *rest, *(background(groups) if groups else [])],
    )
    write_text(folder / "report.html", web)
    write_text(folder / "report.tex", document([*shown, *pairs]))
    write_text(folder / "report.csv", csv_text(GROUP_COLUMNS, group_rows(groups)))
    write_text(folder / "evidence.csv", csv_text(FINDING_COLUMNS, finding_rows(findings)))
    write_text(folder / "comparisons.csv", csv_text(COMPARISON_COLUMNS, comparison_rows(compared)))
    tables = {table.title: (list(table.columns), [list(row) for row in table.rows]) for table in [*shown, *pairs]}
    publish(config, tables, pictures)
    log.info("%s", counts)
    log.info("report in %s and report.md", folder / "report.html")


def publish(config: ReportConfig, tables: dict[str, tuple[list, list]], pictures: list[Path]) -> None:
    """Log the figures and tables of a report to W&B, if the flags in `config` enable W&B.

    Args:
        config: flags of the command.
        tables: title -> (columns, rows).
        pictures: paths of the figures.
    """
    folder = config.output or ""  # `ReportConfig.resolved` demands a folder if W&B is enabled
    metadata = RunMetadata(Path(folder).name, config.wandb_group or "reports", "report", tuple(config.wandb_tags or ()))
    tracker = start_tracker(
        project=config.wandb_project,
        mode=config.wandb_mode,
        api_key=config.wandb_api_key,
        folder=folder,
        config={"runs": list(config.compare or config.runs)},
        metadata=metadata,
    )
    if not isinstance(tracker, NoTracker):
        tracker.report(tables, pictures)
        tracker.finish()


def page(
    groups: list[Group],
    tables: list[Table],
    pictures: list[Path],
    notes: Sequence[str],
    answers: Sequence[str],
) -> str:
    """Return the text of report.md: conditions that all runs share, then answers, then figures, then tables.

    Args:
        groups: groups of runs in the report.
        tables: tables to show, in this order.
        pictures: paths of the figures.
        notes: sentences on the flags of the report.
        answers: sentences that state what the runs show.
    """
    parts = ["# Report\n", *(f"{text}\n" for text in [*shared_sentence(groups), *notes])]
    if not groups:
        parts.append("No run is finished.\n")
    if answers:
        parts.append("".join(f"* {text}\n" for text in answers))
    parts += [f"![{picture.stem}]({picture.name})\n" for picture in pictures]
    return "\n".join([*parts, *(table.markdown() for table in tables)])


def shared_sentence(groups: list[Group]) -> list[str]:
    """Return a sentence on the conditions that all runs share, in a list."""
    common = {name: {group.settings.get(name) for group in groups} for name in CONDITIONS}
    shared = [
        f"{words_of(name).noun} {value_words(name, next(iter(values)) or '')}"
        for name, values in common.items()
        if len(values) == 1 and None not in values
    ]
    return [f"All runs: {', '.join(shared)}."] if shared else []
