"""The committed records: complete, made by the committed parameters, and what the book claims from them."""

import pytest

from report.claims import judge
from report.experiments import records_of
from report.overview import commits_of
from report.paper import read_paper
from report.parameters import PLACES, ROOT, declared_parameters, read_parameters
from report.records import load_pictures, load_records, outdated
from report.tables import MODELS, scores
from simo.files import read_json
from simo.tasks import TASKS, tasks_of
from tools.release import SEVERAL

FOLDER = ROOT / "records"
# where a profile's images may come from; nothing of the paper's scale was run
SOURCES = {"miniature": {"rendered"}, "photos": {"pictures", "pictures of NYUv2"}, "photos_gpu": {"pictures"}}
STUDIES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*"))  # miniature/nyuv2 ...
PARAMETERS = {study: read_parameters(ROOT / f"notebooks/params/{study}.yaml") for study in STUDIES}
# parameters that a notebook has only had since its records were made
LATER = {"field": {"encoder_lr"}, "unlabelled_alpha": {"field_options"}}
EXPERTS = {f"expert_{task.name}" for tasks in TASKS.values() for task in tasks}
LATER |= dict.fromkeys(EXPERTS, {"expert_rank", "expert_adapter_lr"})
MINIATURE = [study for study in STUDIES if study.startswith("miniature/")]
LORA = "miniature/nyuv2_lora"  # experts, the wider field and α without labels alone
WHOLE = [study for study in MINIATURE if study != LORA]
# five tasks on photographs: seed 0 of a CPU, on shorter grids; seeds 1 and 2 of a GPU, of a later commit
FIVE = "photos/taskonomy_photos"
SHORTER = {FIVE: {"consensus_alphas", "field_alphas", "variation_alphas"}}


@pytest.fixture(scope="module", params=STUDIES)
def study(request):
    """Each study with committed records."""
    return request.param


@pytest.fixture(scope="module")
def records(study):
    """All its records."""
    return load_records(FOLDER / study)


@pytest.fixture(scope="module")
def rendered(study):
    """Whether it is of the miniature, whose three seeds are there, and whose pictures are our own."""
    return study in MINIATURE


@pytest.fixture(scope="module")
def frame(study, records):
    """Its scores."""
    return scores(records, PARAMETERS[study]["dataset"])


def test_every_data_set_has_records():
    """The book's default is not drawn from nothing."""
    assert {f"miniature/{dataset}" for dataset in TASKS} <= set(STUDIES)


def test_seeds_are_complete(study, records, rendered):
    """No mean hides a missing run: all seeds hold what is of the paper, and no seed what seed 0 does not.

    What is beyond the paper may be of fewer seeds, of which its tables say so: not of the miniature's first
    three.
    """
    by_seed, values = {}, PARAMETERS[study]
    for record in records:
        by_seed.setdefault(record["seed"], set()).add(record["experiment"])
    assert by_seed.keys() == set(range(len(by_seed)))
    assert len(by_seed) >= 3 or not rendered
    names = [task.name for task in tasks_of(values["dataset"])]
    paper = by_seed[0] & set(records_of(values["dataset"], names, "paper"))
    paper -= {"subsets"} if study == FIVE else set()  # its figure says of which seed it is
    for seed, experiments in by_seed.items():
        assert paper <= experiments <= by_seed[0], seed
        assert experiments == by_seed[0] or seed >= 3 or not rendered, seed


def test_records_were_made_with_the_committed_parameters(study, records):
    """A parameter file that changed without new records would make the book describe another experiment."""
    for record in records:
        provenance, values = record["provenance"], PARAMETERS[study]
        ran = provenance["parameters"]
        shared = values.keys() & declared_parameters(provenance["notebook"]).keys() - set(PLACES)
        shared -= LATER.get(record["experiment"], set()) - ran.keys()
        shared -= SHORTER.get(study, set())
        assert {name: ran[name] for name in shared} == {name: values[name] for name in shared}


def test_no_record_is_older_than_what_it_used(records):
    """Models that were trained anew leave no record of the old ones behind."""
    assert outdated(records) == []


def test_seeds_share_code_data_and_backbone(study, records):
    """Spread over seeds must come from the seed: code, data and backbone are the same; code but in `FIVE`."""
    for experiment in {record["experiment"] for record in records}:
        hashes = [r["provenance"]["hashes"] for r in records if r["experiment"] == experiment]
        for name in ("data", "backbone") if study == FIVE else ("code", "data", "backbone"):
            assert len({each[name] for each in hashes}) == 1, (experiment, name)


def test_the_records_of_a_study_are_of_one_commit(study, records):
    """Whoever doubts a number can check out the code that made all of them; exceptions are named, or go."""
    assert (len(commits_of(records)) == 1) == (study not in SEVERAL)


def test_the_miniature_is_of_one_commit():
    """One state of the code made every record of the data sets: 0911776. LoRA experts came later."""
    found = [record for study in WHOLE for record in load_records(FOLDER / study)]
    (commit,) = commits_of(found)
    assert commit.startswith("0911776")


def test_nothing_committed_is_made_up(study, records):
    """No record of a fixture, and none of another profile, among the results."""
    profile = study.split("/")[0]
    assert {record["provenance"]["source"] for record in records} <= SOURCES[profile]
    assert not any(record["provenance"]["fixture"] for record in records)
    assert {record["profile"] for record in records} == {profile}


def test_no_picture_of_a_data_set_is_committed(study, rendered):
    """Photographs, and what models make of them, are not ours to pass on."""
    assert rendered or not list((FOLDER / study).rglob("*.npz"))


CONTROLS = {"constant", *(name for name in MODELS if name.startswith("expert+"))}
MASKS = {"consensus", "tall_mask", "magnitude_mask"}
NOT_RUN = {LORA: {*MODELS, "constant"} - {"expert", "task_arithmetic", "ties"}}
NOT_RUN["photos_gpu/nyuv2"] = CONTROLS | {"joint", "adamerging", "task_arithmetic+released"}
NOT_RUN[FIVE] = MASKS | {
    "average",
    "ties_untrimmed",
    "adamerging",
    "task_arithmetic+released",
}
NOT_RUN["photos/nyuv2_lite0"] = NOT_RUN["photos_gpu/nyuv2"] | MASKS | {"average", "ties_untrimmed"}


def test_every_model_of_the_tables_has_results(study, frame):
    """The table and its controls have a row for every model on every seed, but for what was not run."""
    models = set(MODELS) - NOT_RUN.get(study, set())
    assert set(frame.index) == {(model, seed) for model in models for seed in frame.index.unique("seed")}


def test_experts_are_far_better_than_a_constant(study, frame):
    """A constant prediction keeps at most 3 quarters of any expert's performance, where it was made."""
    if "constant" in NOT_RUN.get(study, ()):
        assert "constant" not in frame.index.unique("model")
        return
    for task in tasks_of(PARAMETERS[study]["dataset"]):
        assert frame.loc["constant"][f"{task.name} %"].max() < 75, task.name


VERDICTS = read_json(ROOT / "tests" / "report" / "verdicts.json")
HOLD = {
    f"{method}-{claim}"
    for method in ("task_arithmetic", "ties")
    for claim in ("collapses", "heads-recover", "representation-at-least-heads", "beats-pretrained")
}


# with a seed of Cityscapes the validation split chooses not to merge; Taskonomy's heads recover about half
NOT_EVERY_SEED = {
    "miniature/cityscapes": {
        "task_arithmetic-heads-recover": "holds, 1 not applicable",
        "task_arithmetic-representation-at-least-heads": "holds, 1 not applicable",
        "task_arithmetic-beats-pretrained": "holds on 4 of 5 seeds",
    },
    "miniature/taskonomy": {"ties-heads-recover": "holds on 4 of 5 seeds"},
}


@pytest.mark.parametrize("study", WHOLE, indirect=True)
def test_what_the_introduction_says_holds_on_every_seed(study, records, frame):
    """Merging collapses, realignment recovers most, merging contributed; and no claim is left undecided.

    With DPT heads there is no collapse, as the introduction says, too, and so nothing to recover.
    """
    verdicts = judge(frame, PARAMETERS[study]["dataset"], records, read_paper()).verdict
    expected = dict.fromkeys(HOLD, "holds")
    if study.endswith("_dpt"):
        expected |= {name: "fails" for name in HOLD if name.endswith("collapses")}
        expected |= {name: "not applicable" for name in HOLD if name.endswith("heads-recover")}
    expected |= NOT_EVERY_SEED.get(study, {})
    assert {name: verdicts[name] for name in HOLD} == expected
    assert "not run" not in set(verdicts)


def test_verdicts_are_those_expected(study, records, frame):
    """A verdict that changes is a finding: whoever recomputes the records looks at it, and writes it down."""
    verdicts = judge(frame, PARAMETERS[study]["dataset"], records, read_paper()).verdict
    assert verdicts.to_dict() == VERDICTS[study]


@pytest.mark.parametrize("study", WHOLE, indirect=True)
def test_pictures_match_their_record(study):
    """The qualitative figure shows as many images as the parameters name, for every row and task."""
    pictures = load_pictures(FOLDER / study / "seed0" / "qualitative.npz")
    assert {len(array) for array in pictures.values()} == {len(PARAMETERS[study]["images"])}
    assert {name.split("/")[0] for name in pictures} == {
        "image", "truth", "expert", "joint", "merged", "heads", "representation"
    }  # fmt: skip
