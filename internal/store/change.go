package store

import (
	"time"

	"github.com/taskerhq/tasker/internal/task"
)

// Change is what a committed verb did that others may be waiting for.
type Change struct {
	Wake    []Wake       // lanes with something new in them
	Revoked []Revoked    // leases taken away
	Freed   []task.Token // leases that their sessions hold no longer
	Tasks   []task.ID    // tasks whose steps changed: watchers look again
	Settle  []task.ID    // tasks that may have come to their end in error
	// Circuits that changed, or whose slots were freed other than by a report: whoever keeps their steps back looks again.
	Circuits []int32
}

// Wake says that a lane holds runnable steps from Seq on, or a step that is due at DueAt.
type Wake struct {
	LaneID int32
	Seq    int64      // lowest new seq; 0: none
	Count  int        // how many; a hint
	DueAt  *time.Time // earliest new due_at; nil: none
}

// Revoked is a lease taken away from its worker.
type Revoked struct {
	Token  task.Token
	Reason task.RevokeReason
}

// Add merges other into c.
func (c *Change) Add(other Change) {
	c.Wake = append(c.Wake, other.Wake...)
	c.Revoked = append(c.Revoked, other.Revoked...)
	c.Freed = append(c.Freed, other.Freed...)
	c.Tasks = append(c.Tasks, other.Tasks...)
	c.Settle = append(c.Settle, other.Settle...)
	c.Circuits = append(c.Circuits, other.Circuits...)
}
