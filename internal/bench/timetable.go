package bench

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// maxCalls bounds how many calls of one timetable may be under way.
const maxCalls = 1000

// onTime calls do at each instant of a timetable, whatever became of the calls before, until there were n or stop is
// closed, and waits for them all. A call that has to wait for room keeps its instant: the wait is part of what do measures.
func onTime(ctx context.Context, every time.Duration, n int, stop <-chan struct{}, do func(i int, at time.Time) error) error {
	begin := time.Now().Add(every)
	calls, callCtx := errgroup.WithContext(ctx)
	calls.SetLimit(maxCalls)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range n {
		at := begin.Add(time.Duration(i) * every)
		timer.Reset(time.Until(at))
		select {
		case <-timer.C:
			calls.Go(func() error { return do(i, at) })
			continue
		case <-stop:
		case <-callCtx.Done():
		}
		break
	}
	if err := calls.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}
