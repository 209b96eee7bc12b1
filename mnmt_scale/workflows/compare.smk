# Trainings and their evaluations: every job of config["jobs"], which compare.py makes. Outputs are marker files alone.
from mnmt_scale.workflows.stage import command


def literal(path):
    return path.replace("{", "{{").replace("}", "}}")


JOBS = list(enumerate(config["jobs"]))


rule all:
    input:
        [literal(job["evaluate"]["mark"]) for _, job in JOBS],


# In the order of the plan, whole seeds first; an evaluation before the next training.
for number, job in JOBS:

    if "train" in job:

        rule:
            name:
                f"train_{number}"
            output:
                literal(job["train"]["mark"]),
            threads: config["threads"]
            resources:
                gpu=config["gpus_per_training"],
            priority: 2 * (len(JOBS) - number)
            params:
                command=command(job["train"]["name"], job["train"]["words"], config["gpus_per_training"], job["train"]["log"]),
            shell:
                "{params.command}"

    rule:
        name:
            f"evaluate_{number}"
        input:
            [literal(job["train"]["mark"])] if "train" in job else [],
        output:
            literal(job["evaluate"]["mark"]),
        threads: config["threads"]
        resources:
            gpu=min(1, config["gpus_per_training"]),
        priority: 2 * (len(JOBS) - number) + 1
        params:
            command=command(
                job["evaluate"]["name"], job["evaluate"]["words"], min(1, config["gpus_per_training"]), job["evaluate"]["log"]
            ),
        shell:
            "{params.command}"
