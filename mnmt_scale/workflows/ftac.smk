# The paper's chain: universal model with affinities -> groups -> a model per cluster -> translations -> report.
# How many models there are is only known once the groups are decided: a checkpoint rule. Every stage is one `mnmt` verb, whose
# words stand in ftac_stages.py. Outputs are the marker files that the verbs write last, never run directories.

from os.path import exists

from mnmt_scale.workflows import ftac_stages
from mnmt_scale.workflows.stage import command

GPUS, THREADS = config["gpus_per_training"], config["threads"]
DECIDED = "lec|htac|ftac|rand|temp|fix|average|linguistic|random"


localrules:
    all,
    cluster,
    report,


wildcard_constraints:
    system="[a-z]+",
    seed=r"\d+",
    cluster=r"\d+",


def store_for(mark):
    """The token store, for what is not done yet: that it is made again is no reason to train again."""
    return lambda w: ["marks/store"] if config["prepare"] and not exists(mark.format(**w)) else []


def trained(w):
    """The models of a bundle; where its groups are still to be decided, Snakemake comes back here afterwards."""
    groups = f"{w.system}/seed-{w.seed}/groups.json"
    if w.system not in ftac_stages.KIND_OF:
        groups = checkpoints.cluster.get(system=w.system, seed=w.seed).output[0]
    clusters = range(ftac_stages.number_of_clusters(groups))
    return [f"{w.system}/seed-{w.seed}/cluster-{k}/training.json" for k in clusters]


def decided_from(w):
    """What `mnmt cluster` needs: the universal run, language vectors, the groups that others are made like."""
    needed = [f"multilingual/seed-{w.seed}/cluster-0/training.json"]
    needed += [f"marks/vectors.seed-{w.seed}"] if w.system == "lec" else []
    needed += [f"ftac/seed-{w.seed}/groups.json"] if w.system in ftac_stages.FROM_FTAC else []
    return needed


def results():
    names = [config["split"]] + ([f"{config['tests']['name']}.{config['split']}"] if config["tests"] else [])
    return [f"{s}/seed-{n}/eval/{name}.json" for s in config["systems"] for n in config["seeds"] for name in names]


rule all:
    input:
        "report.html",


rule prepare:
    output:
        touch("marks/store"),
    threads: THREADS
    params:
        run=command("prepare", ["prepare", f"{config['out']}/settings/universal.toml"]),
    shell:
        "{params.run}"


rule universal:
    input:
        store_for("multilingual/seed-{seed}/cluster-0/training.json"),
    output:
        "multilingual/seed-{seed}/cluster-0/training.json",
    threads: THREADS
    resources:
        gpu=GPUS,
    priority: 10  # all but the bilingual models wait for it
    params:
        run=lambda w: command(
            f"multilingual.seed-{w.seed}.train", ftac_stages.train_words(config, "multilingual", w.seed, 0), gpus=GPUS
        ),
    shell:
        "{params.run}"


rule vectors:
    input:
        "multilingual/seed-{seed}/cluster-0/training.json",
    output:
        touch("marks/vectors.seed-{seed}"),
    priority: 5
    params:
        run=lambda w: command(
            f"multilingual.seed-{w.seed}.vectors",
            ["probe", "vectors", f"{ftac_stages.bundle_of(config, 'multilingual', w.seed)}/cluster-0"],
        ),
    shell:
        "{params.run}"


checkpoint cluster:
    input:
        decided_from,
    output:
        "{system}/seed-{seed}/groups.json",
    priority: 5
    wildcard_constraints:
        system=DECIDED,
    params:
        run=lambda w: command(f"{w.system}.seed-{w.seed}.cluster", ftac_stages.cluster_words(config, w.system, w.seed)),
    shell:
        "{params.run}"


rule train:
    input:
        store_for("{system}/seed-{seed}/cluster-{cluster}/training.json"),
        "{system}/seed-{seed}/groups.json",
    output:
        "{system}/seed-{seed}/cluster-{cluster}/training.json",
    wildcard_constraints:
        system=f"bilingual|{DECIDED}",
    threads: THREADS
    resources:
        gpu=GPUS,
    params:
        run=lambda w: command(
            f"{w.system}.seed-{w.seed}.cluster-{w.cluster}.train",
            ftac_stages.train_words(config, w.system, w.seed, w.cluster),
            gpus=GPUS,
        ),
    shell:
        "{params.run}"


rule evaluate:
    input:
        store_for(f"{{system}}/seed-{{seed}}/eval/{config['split']}.json"),
        trained,
    output:
        f"{{system}}/seed-{{seed}}/eval/{config['split']}.json",
    threads: THREADS
    resources:
        gpu=min(GPUS, 1),
    params:
        run=lambda w: command(
            f"{w.system}.seed-{w.seed}.evaluate", ftac_stages.evaluate_words(config, w.system, w.seed), gpus=min(GPUS, 1)
        ),
    shell:
        "{params.run}"


if config["tests"]:

    rule evaluate_tests:
        input:
            store_for(f"{{system}}/seed-{{seed}}/eval/{config['tests']['name']}.{config['split']}.json"),
            trained,
        output:
            f"{{system}}/seed-{{seed}}/eval/{config['tests']['name']}.{config['split']}.json",
        threads: THREADS
        resources:
            gpu=min(GPUS, 1),
        params:
            run=lambda w: command(
                f"{w.system}.seed-{w.seed}.evaluate-{config['tests']['name']}",
                ftac_stages.evaluate_words(config, w.system, w.seed, tests=True),
                gpus=min(GPUS, 1),
            ),
        shell:
            "{params.run}"


rule report:
    input:
        results(),
    output:
        "report.html",
    params:
        run=command("report", ["report", config["out"], "--out", f"{config['out']}/report.html"]),
    shell:
        "{params.run}"
