"""What surrounds a run, a user's settings and names of folders, does not change what is computed.

tools/pipeline.py, tools/bootstrap.py and the Makefile leave foreign settings out; tools/doctor.py says which.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline import STEP, start
from test_toolchain import make

from tools import bootstrap, doctor, pipeline

ROOT = Path(__file__).resolve().parents[2]

LEFT_OUT = {
    "SNAKEMAKE_PROFILE": "cluster",
    "SNAKEMAKE_OUTPUT_CACHE": "/cache",
    "PYTHONPATH": "/shadow",
    "PYTHONHOME": "/other",
    "PYTHONSTARTUP": "/start.py",
    "PYTHONIOENCODING": "ascii",
    "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "2",
    "PYTHONUSERBASE": "/user",
    "JUPYTER_PATH": "/kernels",
    "JUPYTER_PREFER_ENV_PATH": "0",
    "IPYTHON_SUPPRESS_CONFIG_ERRORS": "1",
    "PAPERMILL_EXECUTION_TIMEOUT": "1",
    "NUMBA_DISABLE_JIT": "1",
    "NUMBA_CAPTURED_ERRORS": "old_style",
    "MATPLOTLIBRC": "/rc",
    "MPLBACKEND": "Qt5Agg",
    "BASH_ENV": "/rc.sh",
}
KEPT = {
    "HOME": "/home/me",
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_NUM_THREADS": "2",
    "HTTPS_PROXY": "http://proxy",
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": "https://mirror",
    "PIP_INDEX_URL": "https://mirror",
    "TMPDIR": "/scratch",
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_setting_is_left_out_of_a_run(tmp_path, name):
    """Each of these has brought other code, other figures or an early end into somebody's run."""
    assert name not in pipeline.isolated(LEFT_OUT, tmp_path)


@pytest.mark.parametrize("name", KEPT)
def test_setting_is_kept_in_a_run(tmp_path, name):
    """What says which GPU, how many threads and how to reach the network is the user's business."""
    assert pipeline.isolated(LEFT_OUT | KEPT, tmp_path)[name] == KEPT[name]


def test_downloaded_weights_stay_where_they_are(tmp_path):
    """Caches move into the project, but 350 MB of weights are not fetched again."""
    private = tmp_path / "private"
    own = pipeline.isolated({"HOME": str(tmp_path)}, private)
    assert own["HF_HOME"] == str(tmp_path / ".cache/huggingface")
    assert own["TORCH_HOME"] == str(tmp_path / ".cache/torch")
    assert pipeline.isolated({"HF_HOME": "/mine", "HOME": "/x"}, private)["HF_HOME"] == "/mine"
    assert pipeline.isolated({"XDG_CACHE_HOME": str(tmp_path)}, private)["HF_HOME"] == str(
        tmp_path / "huggingface"
    )
    inside = {name for name, value in own.items() if value.startswith(str(private))}
    assert inside >= {"XDG_CACHE_HOME", "IPYTHONDIR", "NUMBA_CACHE_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR"}


def test_weights_without_a_home(tmp_path, monkeypatch):
    """Where the user's cache cannot be written to, the project's takes its place."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert pipeline.isolated({"HOME": "/gone"}, tmp_path)["HF_HOME"] == str(tmp_path / "huggingface")


PIP = {
    "PIP_USER": None,
    "PIP_TARGET": None,
    "PIP_PREFIX": None,
    "PIP_ROOT": None,
    "PIP_NO_DEPS": None,
    "PIP_DRY_RUN": None,
    "PIP_REQUIRE_VIRTUALENV": None,
    "PIP_CONSTRAINT": None,
    "PIP_NO_BINARY": None,
    "PIP_PYTHON": None,
    "UV_PYTHON": None,
    "UV_SYSTEM_PYTHON": None,
    "UV_RESOLUTION": None,
    "UV_OVERRIDE": None,
    "PYTHONPATH": None,
    "PIP_INDEX_URL": "x",
    "PIP_EXTRA_INDEX_URL": "x",
    "PIP_FIND_LINKS": "x",
    "PIP_NO_INDEX": "x",
    "PIP_TRUSTED_HOST": "x",
    "PIP_PROXY": "x",
    "PIP_CERT": "x",
    "PIP_DEFAULT_TIMEOUT": "x",
    "UV_DEFAULT_INDEX": "x",
    "UV_CACHE_DIR": "x",
    "UV_NATIVE_TLS": "x",
    "SSL_CERT_FILE": "x",
    "HTTPS_PROXY": "x",
}


@pytest.mark.parametrize("name", PIP)
def test_setting_of_an_installation(name):
    """Where packages come from is the user's, what is installed and where to is the project's."""
    assert bootstrap.isolated({name: "x"}, {}).get(name) == PIP[name]


def test_pips_files_are_read_for_mirrors_alone():
    """A pip.conf with `user` or `target` breaks nothing, its mirror is used, and a variable beats a file."""
    text = """:env:.index-url='https://variable'
global.index-url='https://file'
global.target='/elsewhere'
global.user='true'
install.index-url='https://install'
install.find-links='/a /b'
download.dest='/c'
global.trusted-host="it's"
"""
    own = bootstrap.isolated({"PIP_TARGET": "/x"}, bootstrap.pip_settings(text))
    expected = {"PIP_INDEX_URL": "https://variable", "PIP_FIND_LINKS": "/a /b", "PIP_TRUSTED_HOST": "it's"}
    assert own == expected | {"PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}


SNAKEFILE = """
import json
rule all:
    output: "out/config", "out/encoding"
    params: config=json.dumps(config)
    shell: "python step.py {params.config:q}"
"""
SHOW = "import sys; open('out/config', 'w').write(sys.argv[1]); open('out/encoding', 'w').write('ü')"
CONFIG = {
    "build": "1e3",
    "data": "2024",
    "weights": "{a: b}",
    "studies": "[x]",
    "set": "{c: 0,1}",
    "further": "no",
}
CONFIG |= {"download": "ü & $x 'y' \"z\" \\", "profile": "- a", "seeds": "007", "empty": ""}


def test_run_amid_hostile_settings(tmp_path):
    """Profiles that would do nothing, shadowing modules, no HOME, another encoding, all at once; and every
    text reaches the Snakefile as it was given, though it looks like a number or a list.
    """
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "step.py").write_text(SHOW)
    for profile in ("user", "profiles/default"):
        (tmp_path / profile).mkdir(parents=True)
        (tmp_path / profile / "config.yaml").write_text("dry-run: true\ntouch: true\n")
    (tmp_path / "shadow").mkdir()
    for module in ("progress", "yaml", "json", "snakemake"):
        (tmp_path / "shadow" / f"{module}.py").write_text("raise SystemExit('shadowed')")
    hostile = {
        "SNAKEMAKE_PROFILE": str(tmp_path / "user"),
        "PYTHONIOENCODING": "ascii",
        "HOME": "/nonexistent",
    }
    hostile |= {"XDG_CACHE_HOME": "/proc/none", "BASH_ENV": str(tmp_path / "rc")}
    (tmp_path / "rc").write_text("exit 1")
    command = [sys.executable, "-E", ROOT / "tools/pipeline.py", "all", "--cores", "1", "--config"]
    command += [f"{name}={value}" for name, value in CONFIG.items()]
    hostile |= {"PYTHONPATH": str(tmp_path / "shadow")}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | hostile, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out/config").read_text()) == CONFIG
    assert (tmp_path / "out/encoding").read_text(encoding="utf-8") == "ü"


def test_project_that_cannot_be_written_is_named(tmp_path):
    """A read-only copy is told in two lines, not by a traceback of the lock."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "step.py").write_text(STEP)
    (tmp_path / ".snakemake").touch()  # as root, permissions refuse nothing
    driver = start(tmp_path)
    assert driver.wait(timeout=300) == 1
    assert re.match("cannot write .*the project needs a folder that you may write", driver.output.read_text())


def no_file_may_grow():
    """In a process that is to begin: as a full disk, which lets files be made and nothing be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_a_full_disk_is_told(tmp_path):
    """By the run and by the installation, where their first byte is written: no traceback, and what to do."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "tools").mkdir()
    for name in ("constraints.txt", "pyproject.toml", "tools/bootstrap.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for program in (ROOT / "tools" / "pipeline.py", tmp_path / "tools" / "bootstrap.py"):
        command = [sys.executable, program, "all"]
        plan = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300, "check": False}
        done = subprocess.run(command, preexec_fn=no_file_may_grow, **plan)
        output = done.stdout + done.stderr
        assert done.returncode == 1
        assert re.search(r"cannot write .* \(File too large\): ", output)
        assert "Traceback" not in output


PLACES = {  # of a folder that has `file`, `loop` that leads to itself and `lost` that leads nowhere
    "loop": "Too many levels of symbolic links",
    "loop/x": "Too many levels of symbolic links",
    "lost": "No such file or directory",
    "lost/x": "No such file or directory",
    "file": "Not a directory",
    "file/x/y": "Not a directory",
    "/dev/null/x": "Not a directory",
    "l" * 300: "File name too long",
    "/".join(["d" * 200] * 25): "File name too long",
}


@pytest.mark.parametrize("name", PLACES)
def test_place_that_no_build_can_have(tmp_path, monkeypatch, capsys, name):
    """It is named before anything is planned, by the doctor, too; Snakemake would show its own insides."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("lost").symlink_to("nowhere")
    assert pipeline.refusal(name).startswith(f"{PLACES[name]}: /")
    assert [each[:2] for each in doctor.examine_machine(name) if each[1] in ("BUILD", "disk")] == [
        ("FAIL", "BUILD")
    ]
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "reconfigure", lambda **_: None, raising=False)
    assert pipeline.main(["all", "--config", f"build={name}"]) == 1
    output = capsys.readouterr().out
    assert f"cannot write to BUILD={name} ({PLACES[name]}" in output
    assert "Choose a folder that you may write to" in output
    assert sorted(os.listdir()) == ["file", "loop", "lost"]


@pytest.mark.parametrize("name", ["new/er", "-x", "%s", "#", "a/", "a//b", ".", "/dev/shm/simo"])
def test_place_that_a_build_can_have(tmp_path, monkeypatch, name):
    """Nothing is made by looking."""
    monkeypatch.chdir(tmp_path)
    assert pipeline.refusal(name) is None
    assert not os.listdir()


NAMES = [
    "a b",
    "it's",
    'say "x"',
    "a$$b",
    "a&b;c|d",
    "Größe",
    "[1]*?",
    "(x)",
    "`id`",
    "#1",
    "~",
    "a\\b",
    "a,b",
    "~/x",
    "50%",
    "%s",
    "-x",
    "a/",
    "a=b",
    "@x",
    "*",
    "a  b",
]


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_folder_survives_make_and_shell(name):
    """BUILD and DATA reach the pipeline as they are; $$ is how make writes a dollar."""
    lines = make(ROOT, "-n", "data", f"BUILD={name}", f"DATA={name}").splitlines()
    line = next(line for line in lines if "pipeline.py" in line)
    shown = line.replace(".venv/bin/python tools/pipeline.py", "printf '%s\\n'")
    words = subprocess.run(
        ["sh", "-c", shown], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    plain = name.replace("$$", "$")
    assert {f"build={plain}", f"data={plain}"} <= set(words)


def dry_run(*config):
    """Plan the smoke run with Snakemake's own messages, which show the commands."""
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "book", "--cores", "2", "--config"]
    done = subprocess.run(
        [*command, *map(pipeline.as_text, ["profile=smoke", "studies=nyuv2", *config])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_name_of_a_folder_survives_the_snakefile():
    """In every command of the plan, the folder of the build is one word, or part of one."""
    build = "a 'b' \"c\" $d & größe"
    code, output = dry_run(f"build={build}")
    assert code == 0, output[-2000:]
    commands = re.findall(r"^Shell command: (python .*2>&1)$", output, re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        words = shlex.split(command.replace('"$(dirname ', "").replace(')"', ""))
        assert any(word.startswith(build) for word in words), command
        assert not {"$d", "&", "größe"} & set(words), command


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("build={x}", "BUILD={x}: braces"),
        ("build=a\nb", "BUILD=a\\s+b: braces and line ends"),
        ("build=.", "BUILD=.: the project's own files are there"),
        ("build=records/mine", "BUILD=records/mine: the project's own files are there"),
        ("profile=smok", "PROFILE=smok: .*did you mean 'smoke'"),
        ("set={clip: 1.0", "SET, line 1"),
    ],
)
def test_snakefile_refuses(config, message):
    """What cannot be is refused by name before anything is planned."""
    code, output = dry_run(config)
    assert code != 0
    assert re.search(message, output), output[-2000:]


def run_doctor(capsys, *arguments):
    """Run the doctor; return its exit code and what it prints."""
    code = doctor.main([*map(str, arguments)])
    return code, capsys.readouterr().out


def test_doctor_names_settings_and_data(tmp_path, monkeypatch, capsys):
    """One screen: settings that are not used, data in every state, weights, and what to do next."""
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(sys.stderr, "reconfigure", lambda **_: None, raising=False)
    for name in ("SNAKEMAKE_PROFILE", "PIP_TARGET", "PYTHONPATH", "PYTHON"):  # the last is the Makefile's
        monkeypatch.setenv(name, "x")
    (tmp_path / "kernels/python3").mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    build, data = tmp_path / "build", tmp_path / "data"
    states = {"nyuv2/prepared.json": '{"splits": {"train": 2, "val": 1}, "source": "mat"}'}
    states |= {"cityscapes/request.json": "{}", "taskonomy/rgb.txt": "", "broken/prepared.json": "["}
    for name, content in states.items():
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text(content)
    (build / "weights").mkdir(parents=True)
    (build / "weights/vit.safetensors").touch()
    code, output = run_doctor(capsys, "--config", f"build={build}", f"data={data}")
    assert code == 0
    for text in (
        "PIP_TARGET, PYTHONPATH, SNAKEMAKE_PROFILE: not used",
        f"{tmp_path} has a python3, which is not used",
        "nyuv2: 3 images, from mat",
        "cityscapes: begun, not finished",
        "taskonomy: not prepared",
        "broken: prepared.json cannot be read",
        "vit.safetensors: no recipe beside it",
        "\nnext: make book PROFILE=paper DATA=...",
    ):
        assert text in re.sub("JUPYTER_PATH, ", "", output), output
    assert len(output.splitlines()) <= 24


@pytest.mark.parametrize(
    ("function", "value", "topic"),
    [
        ("is_writable", False, "FAIL project"),
        ("gigabytes", 0.06, "!    disk"),
        ("gigabytes", 0.06, "note /dev/shm  0.06 GB free: too little"),
        ("memory", 1.0, "!    memory"),
    ],
)
def test_doctor_says_what_stands_in_the_way(monkeypatch, capsys, function, value, topic):
    """The quick half shows what is wrong, not what is fine; only what must be corrected ends `make`."""
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(sys.stderr, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(doctor, function, lambda *_: value)
    code, output = run_doctor(capsys, "--quick")
    assert code == topic.startswith("FAIL")
    assert topic in output
    assert not re.search("^ok", output, re.MULTILINE)


def test_make_book_begins_with_the_quick_half():
    """`make book` says what stands in the way before it computes, and `make doctor` needs no .venv."""
    assert re.search(r"doctor.py --quick --config .*\n.*pipeline.py book", make(ROOT, "-n", "book"))
    assert "bootstrap" not in make(ROOT, "-n", "doctor")
    command = [sys.executable, "-S", "-E", ROOT / "tools/doctor.py", "--quick"]  # without installed packages
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == 0
