# Train with a SIGKILL in the middle, resume, evaluate, explain, export, convert to a state dict and back.
. /tmp/w/v/bin/activate; export JAX_COMPILATION_CACHE_DIR=/tmp/w/jaxcache PYTHONPATH=/tmp/w/wt/vit; cd /tmp/w/wt/vit
v=$1; R=/tmp/w/vit_new/whole_$v; rm -rf $R; mkdir -p $R; C=/tmp/w/vit_new/camvid_small.py:$v
say() { echo "== $(date +%T) $*"; }
say train; nice -n 5 python train.py --config $C --workdir $R/run > $R/train1.log 2>&1 & p=$!
until grep -q '"step": 3[05]' $R/run/metrics.jsonl 2>/dev/null; do kill -0 $p || break; sleep 0.5; done
kill -KILL $p; wait $p; say "killed: status $?"; ls $R/run/checkpoints; tail -1 $R/run/metrics.jsonl | cut -c1-120
nice -n 5 python train.py --config $C --workdir $R/run > $R/train2.log 2>&1; say "resumed: status $?"; grep -h "Resuming\|Done" $R/train2.log
say evaluate; nice -n 5 python eval.py --config $C --checkpoint $R/run --output $R/eval > $R/eval.log 2>&1; say "eval: status $?"
python -c "import json;m=json.load(open('$R/eval/metrics.json'));print(m['images'], m['metrics'])"
img=$(ls /tmp/w/camvid_test/images/validation/* | head -1)
nice -n 5 python predict.py --checkpoint $R/run --input $img --output $R/pred --explain > $R/pred.log 2>&1; say "explain: status $?"; ls $R/pred
nice -n 5 python -m fasseg_jax.export --checkpoint $R/run/checkpoints/60 --size 128x160 --platform cpu --output $R/model.npz > $R/export.log 2>&1; say "export: status $?"; tail -3 $R/export.log
nice -n 5 python convert.py --weights $R/run/checkpoints/60 --output $R/w.safetensors > $R/convert.log 2>&1; say "to state dict: status $?"
nice -n 5 python convert.py --config $C --weights $R/w.safetensors --output $R/back > $R/convert2.log 2>&1; say "back: status $?"
cat > $R/compare.py <<'PY'
import sys, jax, numpy as np
from PIL import Image
from fasseg_jax import Segmenter
from fasseg_jax.weights.checkpoint import load_checkpoint
from fasseg_jax.export.load_exported import load
R, img = sys.argv[1:]
a, b = (load_checkpoint(f"{R}/{n}") for n in ("run/checkpoints/60", "back"))
same = jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))
print("leaves", len(jax.tree.leaves(a.variables)), "equal after the round trip:", same)
photo = np.asarray(Image.open(img).convert("RGB").resize((160, 128), Image.BILINEAR))
ours = Segmenter.from_checkpoint(f"{R}/back", mode="single")
theirs = np.asarray(load(f"{R}/model.npz")(photo))
print("labels of the exported file equal to the package's:", np.mean(theirs == ours(photo).labels))
PY
nice -n 5 python $R/compare.py $R $img; say "compare: status $?"
