package task

import "time"

// Pause keeps the steps of a handler from being dispatched, or with an empty Handler those of a whole namespace.
type Pause struct {
	Namespace string
	Handler   string // empty: every handler
	Reason    string
	Actor     string     // who paused it; empty: nobody in particular
	Since     time.Time  // no step of it was dispatched after
	Until     *time.Time // when it ends by itself; nil: when somebody resumes the handler
}
