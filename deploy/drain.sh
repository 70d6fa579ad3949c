#!/bin/sh
# preStop of a preemptible node: rondo-drain SECONDS. Ray places nothing here any more and restarts elsewhere what may
# be restarted; calls in flight have SECONDS to end; then the node leaves.
set -u
seconds=$1
started=$(date +%s)
# What the node was to do anyway must not depend on whether the head still answers.
timeout "$seconds" ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "node is preempted" \
    --deadline-remaining-seconds "$seconds" || echo "rondo-drain: the head did not take the request" >&2
left=$((seconds - $(date +%s) + started))
[ "$left" -le 0 ] || sleep "$left"
exec ray stop --grace-period 5
