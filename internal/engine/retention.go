package engine

import (
	"context"
	"time"

	"github.com/taskerhq/tasker/internal/store"
)

const (
	retainEvery = 10 * time.Minute
	// retainAgain is the wait after a round that traffic kept from dropping something.
	retainAgain = 10 * time.Second
)

// retentionLoop makes partitions ahead of need, moves task numbers on to a fresh one once in a while, and drops what is
// old. Every server does it; the database lets one at a time.
func (e *Engine) retentionLoop(ctx context.Context) error {
	return every(ctx, func(ctx context.Context) time.Duration {
		done, err := e.store.Retain(ctx, store.Retention{
			Shard: e.conf.Shard, Tasks: e.conf.Retention, History: e.conf.Retention, Roll: e.conf.PartitionInterval,
		})
		if err != nil {
			e.sweepFailed(ctx, "retention", err)
			return jittered(retainAgain)
		}
		if done.PartitionsDropped+done.DaysDropped+done.TasksPurged+done.SessionsForgotten > 0 || done.KeysForgotten > 0 {
			e.log.InfoContext(ctx, "retention dropped what is old", "task_partitions", done.PartitionsDropped,
				"history_days", done.DaysDropped, "tasks_purged", done.TasksPurged, "keys_forgotten", done.KeysForgotten,
				"sessions_forgotten", done.SessionsForgotten)
		}
		if done.Busy {
			return jittered(retainAgain)
		}
		return jittered(retainEvery)
	})
}
