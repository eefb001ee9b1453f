#!/bin/sh
# Ask the training commands of this machine to save and stop, and wait until they have. Kubernetes runs it in a head
# before it ends it (preStop), for at most terminationGracePeriodSeconds.
training='^[^ ]*python[^ ]* ([^ ]*/)?(diffmm-dist|launch[.]py) train( |$)'
pkill -TERM -f "$training"
while pgrep -f "$training" > /dev/null; do
    sleep 1
done
