"""The smallest app worth a name, against which the synth of ours is timed: one stack with one bucket."""

import os

import aws_cdk as cdk
from aws_cdk import aws_s3 as s3

app = cdk.App(outdir=os.environ.get("CDK_OUTDIR", "cdk.out"))
s3.Bucket(cdk.Stack(app, "Minimal"), "Bucket")
app.synth()
