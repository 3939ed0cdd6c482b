"""What the index of the boards says about reading and repeating them."""

GUIDE = """\
## How to read

- **A section** holds what may be compared: the same copy of the data, the same size, the same protocol id, the same
  architecture. Numbers of different protocol ids never share a table.
- **The picture** above a table has its rows: a disc is an entry, a ring a control, a square a baseline; the line is the
  95 % interval, and the band behind it that of random images (or graphs) with the same kind of labels.
- **Entries** are in bold; controls and, unranked below them, baselines are plain. The preset follows the method's name,
  then the recipe's id where two rows would look alike; random real images (or graphs) with class labels have no preset.
- **Baselines** need no distillation: all real data (`full`, for orientation, with its own number of steps), and for
  graphs a net that was never trained (`untrained`) and classifiers of counts alone (`node-count`, `node-edge-count`).
- **top-1** is the accuracy of the last epoch on a test split that each student reads once: the mean over sets (seeds of
  synthesis, or random draws) ± half of its 95 % t interval. The unit is the set: the students of one set are no
  repetitions of the method. Sets with equal bytes count as one. Graphs of two classes are ranked by **ROC-AUC**
  instead, in percent too (50 is chance); their top-1 is among the other metrics. Where students choose on validation
  data (steps, pool, learning rate), the score is of what was chosen, and the choices stand in the details.
- **runs** counts distinct sets × students a set. † marks rows with one set: they speak for that set alone.
- **rank** is the range that the data allow: rows are compared in pairs (Welch's t test, Holm's correction over the
  table, 5 %), and rows that cannot be told apart share their ranks. Two sets are few: Welch's test with two on one side
  and many on the other errs up to twice as often as it says, so give an entry three or more.
- **gain over random** is the distance to random real images (or graphs) with the same kind of labels, judged alike,
  with its 95 % interval. *better*, *tie* and *worse* follow the p-value, which is Holm-corrected over the column, so
  that an interval just beside zero may still be a tie. Without three judged draws of its control a row has neither gain
  nor rank.
- **Against the other controls** has a p-value that is Holm-corrected over its table. Random images with soft or
  taped labels stand there beside those with hard labels: what labels alone give. **paired by seed**, a secondary
  analysis, is the mean difference over the seeds that both sides have (three or more), where sets of one seed have a
  start in common. Its 95 % interval and p-value are of a paired t test and **not corrected**; it was fixed before the
  first graphs were judged, but after the first images.
- **Against what needs no distillation** holds every entry against every baseline but `full`, Holm-corrected over the
  table: Welch's test against untrained nets, a one-sample t test against the one value of a count. A baseline that no
  entry is better than is named below the table and, in bold, in the last column above.
- **labels** are *hard* (a class), *soft* (a teacher's logits for the plain image), *taped* (logits for every view
  that a recorded augmentation shows, which only students that replay the tape can use) or *features* (of a network that
  was trained without labels).
- **Transfer** (`transfer-…`): a student learns from a set of one data set, is fine-tuned on another with all of its
  labels (top-1), and before that probed by a linear layer on its features with parts of the labels. ▲ and ▼ mark probes
  significantly above or below random images with the same kind of labels (Holm over that table). `scratch` has seen no
  set.
- **bytes** is the size of the set's tensors file (of the largest set) with images, labels and container, and of the
  teachers, where students need them. Nominal images per class are no budget.
- **synthesis** is wall-clock seconds a set, teachers apart (other sets may share them); **training** is seconds a
  student. Seconds compare only on the same machine.
- **records** link to the JSON files behind a row: every student with its seed, score, machine and versions.
"""

REPRODUCE = """\
## How to reproduce

```
ddbench synth --method infer --dataset digits --ipc 10 --seed 0   # make a set; a row names its method and preset
ddbench eval                                                      # judge what is not judged yet, controls included
ddbench leaderboard                                               # write these pages
ddbench leaderboard --check                                       # compare them with the records
```
"""
