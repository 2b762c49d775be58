"""What --help says above and below the options of each command."""

DESCRIPTION = """\
Customise a text-to-video model with a subject from a few photographs and a motion from a clip, and compose the two.
Without --base everything runs on a tiny base that is embedded here: for trying things in minutes, without a download.
"""
EXAMPLES = """\
examples:
  dreamvideo demo
  dreamvideo train subject photos/ --class-word dog --base models/modelscope
  dreamvideo train motion dance.mp4 --caption "a person is dancing" --base models/modelscope
  dreamvideo sample "a <my-dog> is dancing" --adapter output/my-dog.safetensors --adapter output/dance.safetensors \\
      --base models/modelscope
  dreamvideo inspect models/modelscope
"""
DEMO = """\
Trains a subject that the embedded base has never seen from 4 photographs and a motion from 1 clip, then composes them.
Leaves both adapters, the video, a contact sheet, loss curves and report.json in one folder. The same with your own
media: give --images and --video, and better also --class-word, --caption and --prompt.
"""
DEMO_EXAMPLES = """\
examples:
  dreamvideo demo
  dreamvideo demo --images photos/ --video dance.mp4 --class-word dog --caption "a person is dancing" \\
      --prompt "a <my-dog> is dancing in the snow" --base models/modelscope
"""
SUBJECT = """\
Learns a subject in two stages: its placeholder's token (textual inversion), then an identity adapter. Writes one
file with both, and beside it the losses as a plot and a table. The mask of photos/00.jpg is photos/masks/00.png or
photos/00-masklabel.png, white on the subject, and the crop follows it; the caption is in photos/00.txt and names the
placeholder, or is "a <my-dog>" where there is none. Stopped or killed, the same command goes on where it was; with more
--steps it goes on from where it ended, by the state that is kept in output/my-WORD.state. Without --out the file gets a
name of its own: nothing that is finished is replaced.
"""
SUBJECT_EXAMPLES = """\
examples:
  dreamvideo train subject photos/ --class-word dog
  dreamvideo train subject photos/ --class-word "plush toy" --placeholder "<wolf>" --out wolf.safetensors --steps 600
"""
MOTION = """\
Learns a motion from one or more clips: an adapter in the temporal transformers, guided by a frame's appearance. A
clip's caption is in the .txt of the same name beside it, else it is --caption. Writes the adapter, and beside it the
losses as a plot and a table. Stopped or killed, the same command goes on where it was; with more --steps it goes on
from where it ended, by the state that is kept in output/CLIP.state. Without --out the file gets a name of its own:
nothing that is finished is replaced.
"""
MOTION_EXAMPLES = """\
examples:
  dreamvideo train motion dance.mp4 --caption "a person is dancing"
  dreamvideo train motion clips/ --out dance.safetensors --frames 16
"""
SAMPLE = """\
Makes a video of a prompt, on the base alone or with any number of identities and motions. Brackets weigh: (red:1.4)
counts 1.4 times, (red) 1.1 times; \\( and \\) are brackets that weigh nothing.

Where and when an adapter acts stands in brackets behind its file, with any of: area=left, right, top, bottom or a
mask's file (a picture, a video or a folder of pictures), frames=0..0.5 (part of the video), steps=0..0.6 (part of the
way from noise to video), ramp=1..0 (factors at the first and the last of those steps), depth=0..1 (factors at the
UNet's outermost level and in its middle), guided=0.6 (from which part of the way on guidance draws towards it as
towards the prompt, for more of a subject's looks; 1 for never). Where steps and guided are not given the file says
them: a subject by dreamvideo_plus has 0.2..1 and 0.6. A region, AREA: PROMPT, reads a prompt of its own; a subject that
it names acts there alone. left[apart=0.5]: PROMPT is drawn by itself for the first half of the way, where else only one
of two subjects appears.
"""
SAMPLE_EXAMPLES = """\
examples:
  dreamvideo sample "a red circle moving left on the grass"
  dreamvideo sample "a <my-dog> is dancing" --adapter my-dog.safetensors --adapter dance.safetensors@0.8 --seed 3
  dreamvideo sample "a <my-dog> and a <my-cat>" --adapter my-dog.safetensors --adapter my-cat.safetensors \\
      --region "left: a <my-dog> on the grass" --region "right: a <my-cat> on the grass"
  dreamvideo sample "a <my-dog> on the grass" --adapter my-dog.safetensors --adapter "run.safetensors[frames=0..0.5]" \\
      --adapter "jump.safetensors@0.9[frames=0.5..1]"
"""
INSPECT = """\
Tells layout, architecture, precision and size of a base's parts, which of them are missing and where they come from, or
what an adapter file was trained on and how.
"""
CONVERT = """\
Writes a UNet or a motion module in another layout, container or precision, with LoRAs of AnimateDiff's merged in, or an
adapter in our format (.safetensors) or the authors' (.pth, where a learned token is a file of its own and its name is
*). SRC stays as it is: DST is another file.
"""
CONVERT_EXAMPLES = """\
examples:
  dreamvideo convert text2video_pytorch_model.pth unet.safetensors --dtype float16
  dreamvideo convert unet.safetensors my-pipeline --layout diffusers
  dreamvideo convert mm_sd_v15_v2.ckpt panning.safetensors --lora v2_lora_PanLeft.ckpt
  dreamvideo convert my-dog.safetensors my-dog.pth
"""
SWEEP = """\
Makes all of a plan: every subject and every motion is learned by every method and each pair of them sampled, measured
and shown on one page, report.html. Tells first how much that is and what it will cost. Stopped, killed or with a larger
plan, the same command makes what is missing. A plan is a TOML file, or a folder that holds subjects/NAME/ with
photographs and motions/NAME.mp4 with captions in NAME.txt.
"""
SWEEP_EXAMPLES = """\
examples:
  dreamvideo sweep plan.toml --dry-run
  dreamvideo sweep plan.toml --limit 1
  dreamvideo sweep plan.toml --ray
  dreamvideo sweep mascots/ --base models/modelscope --ray auto --gpus 0.5
"""
CHECK = """\
Trains every stage for a few steps, samples a short video and compares the device with the CPU: two minutes on a card.
Prints a report fit for a bug report: versions, devices, precisions, what ran where, speeds, peak memory, agreement. It
names no folder and no user, writes nothing else, and tells what needs attention.
"""
CHECK_EXAMPLES = """\
examples:
  dreamvideo check
  dreamvideo check --base models/modelscope --out check.txt
"""
ANALYZE = """\
Fine-tunes all spatial weights on a subject and all temporal weights on a motion, and plots by how much each kind of
layer changed: where an adapter has most to do (the paper's Figure 4). With your own media: --images and --video.
"""
EVALUATE = """\
With --suite nano trains, samples and measures every method of the paper's comparison on the toy world, where the truth
is known, and writes the paper's tables with confidence intervals and a figure. Stopped or killed, the same command
goes on where it was. With --videos gives your own videos the paper's four metrics.
"""
EVALUATE_EXAMPLES = """\
examples:
  dreamvideo evaluate --suite nano --quick
  dreamvideo evaluate --videos made/ --images photos/ --prompts prompts.txt --clip-weights vit-b-32.safetensors
"""
NANO_TRAIN = """\
Trains the embedded base again from nothing: autoencoder, text and image encoder, UNet. Hours on a CPU. Stopped or
killed, the same command goes on where it was. A vae.safetensors in DIR/weights is taken as the autoencoder.
"""
NANO_GATE = """\
Tells what the autoencoder that nano train has so far keeps of subjects and motions that no part of the base ever sees,
and writes a sheet of them beside their truth. What it loses no method can show.
"""
NANO_EVALUATE = """\
Samples captions that were held out of training and tells how often colour, shape, motion and place are right.
"""
