# Part quality of gpu_check.sh, which reads this file. The token store: --store DIR (one of configs/gpu/joint.toml), or made here
# from --data DIR, which for this part holds lafand and oldi (../shared/data without it). Checkpoints stay in GPU_CHECK_PLACE (0.5 GB each); the runs'
# logs and translations go to OUT/quality/runs.tar.gz.
part_quality() { # joint against CATS: two trainings of 200 s (less where the time is short), both evaluated at once, one table
    local runs=$place/quality name seconds=200 lines=60 sets=(--set train.max_minutes=0) evaluations=()
    if [ "${text[0]:-}" = --store ]; then sets+=(--set "data.store=${text[1]}"); else
        sets+=(--set "data.store=$place/quality-store")
        if [ ${#data[@]} -gt 0 ] && [ ! -d "${data[1]}/lafand" ] && [ -z "$list" ]; then
            echo "quality needs DIR/lafand and DIR/oldi in its --data DIR, or a --store of configs/gpu/joint.toml" >&2; code=1; return
        fi
        [ ${#data[@]} -eq 0 ] || sets+=(--set "data.corpora=[{path='${data[1]}/lafand'},{path='${data[1]}/oldi'}]")
    fi
    if [ -n "$quick" ]; then
        seconds=5 lines=2
        sets+=(--set 'data.tasks=["hau-en","szl_Latn-eng_Latn","vec_Latn-eng_Latn"]' --set sampling.tasks_per_batch=2 --set model.preset=tiny
            --set batch.batch_tokens=512 --set train.validate_sentences=4 --set evaluation.beam=2)
        sets+=(--set data.tokenizer.vocabulary_size=1000 --set data.tokenizer.sample_lines=2000)
    fi
    if [ "${text[0]:-}" != --store ] && [ ! -f "$place/quality-store/store.json" ]; then
        mnmt_ prepare configs/gpu/joint.toml "${sets[@]:2}" || { code=$?; return; }
    fi
    # 30 s to begin and to save each training, 60 s for the evaluations
    [ $(((limit - SECONDS - 120) / 2)) -ge "$seconds" ] || seconds=$(((limit - SECONDS - 120) / 2))
    [ "$seconds" -ge 5 ] || { echo "no time left for the trainings"; code=1; return; }
    sets[1]=train.max_minutes=$(printf '%d.%04d' $((seconds / 60)) $((seconds % 60 * 10000 / 60)))
    for name in joint cats; do
        timeout=$((seconds + 60))
        do_ timeout --foreground --kill-after=20 "$timeout" "$venv" -m mnmt_scale train "configs/gpu/$name.toml" --run-dir "$runs/$name" \
            --resume never "${sets[@]}"; worse $?
    done
    local left=$((limit - SECONDS - 12)) # 0 would be no limit
    for name in joint cats; do # what was translated when the time is up is in the table
        do_ timeout --foreground --kill-after=5 $((left > 1 ? left : 1)) "$venv" -m mnmt_scale evaluate "$runs/$name" --limit $lines --device "$device" &
        evaluations+=($!)
    done
    for name in "${evaluations[@]}"; do wait "$name"; worse $?; done
    mnmt_ bench quality "$runs/joint" "$runs/cats" --out "$out/quality"; worse $?
    do_ tar czf "$out/quality/runs.tar.gz" --exclude=checkpoints -C "$runs" joint cats; worse $?
}
