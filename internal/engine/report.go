package engine

import (
	"context"

	"github.com/taskerhq/tasker/internal/task"
)

// ReportAnswer is the answer to one report. Err may be a *task.Error.
type ReportAnswer struct {
	Reported *task.Reported
	Err      error
}

// pendingReport is a report that waits for its transaction. It is answered once.
type pendingReport struct {
	report *task.Report
	into   *ReportAnswer
	done   chan<- struct{}
}

func (p *pendingReport) answer(r *task.Reported, err error) {
	*p.into = ReportAnswer{Reported: r, Err: err}
	p.done <- struct{}{}
}

// Report records outcomes; they are recorded when it returns. Concurrent calls share transactions, and each entry gets its
// own answer. A caller that gives up earlier leaves its reports to be recorded all the same; sending them again is safe.
func (e *Engine) Report(ctx context.Context, reports []task.Report) []ReportAnswer {
	if err := e.admit(len(reports)); err != nil {
		return answerAll(len(reports), err)
	}
	// Private to this call: a caller that gave up must not read what is still being written.
	waiting := make([]ReportAnswer, len(reports))
	done := make(chan struct{}, len(reports))
	for i := range reports {
		p := &pendingReport{report: &reports[i], into: &waiting[i], done: done}
		if h, err := e.hubOf(ctx, reports[i].Token.NamespaceID); err != nil {
			p.answer(nil, err)
		} else if err := e.knowCircuits(ctx, p.report); err != nil {
			p.answer(nil, err)
		} else {
			h.enqueue(p)
		}
	}
	for i := range reports {
		select {
		case <-done:
		case <-ctx.Done():
			go func() {
				for range len(reports) - i {
					<-done
				}
				e.dismiss(len(reports))
			}()
			return answerAll(len(reports), ctx.Err())
		}
	}
	e.dismiss(len(reports))
	return waiting
}

// answerAll answers each of n reports alike.
func answerAll(n int, err error) []ReportAnswer {
	answers := make([]ReportAnswer, n)
	for i := range answers {
		answers[i].Err = err
	}
	return answers
}

// hubOf gives the hub of the namespace that a token names, which whoever invented the token may have invented too.
func (e *Engine) hubOf(ctx context.Context, id int32) (*hub, error) {
	if h := e.findHub(id); h != nil {
		return h, nil
	}
	exists, err := e.store.NamespaceExists(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case !exists:
		return nil, task.Refuse(task.LeaseLost, "this is no lease token that is in force")
	}
	return e.hub(id), nil
}

func (h *hub) enqueue(p *pendingReport) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		p.answer(nil, goingAway())
		return
	}
	h.reports = append(h.reports, p)
	h.gathered()
}

// late decides a report whose lease is gone, beside the batches: it is rare, and must not hold them up.
func (e *Engine) late(p *pendingReport) {
	e.workers.Go(func() {
		ctx, cancel := context.WithTimeout(e.background, flushTimeout)
		defer cancel()
		answer, change, err := e.store.ReportLate(ctx, p.report)
		if err != nil {
			p.answer(nil, err)
			return
		}
		// Whatever was decided, the token's lease stands no more; a commit whose answer was lost may have ended it.
		change.Freed = append(change.Freed, p.report.Token)
		e.changed(change)
		if answer.Refused != nil {
			p.answer(nil, answer.Refused)
			return
		}
		p.answer(answer.Reported, nil)
	})
}
