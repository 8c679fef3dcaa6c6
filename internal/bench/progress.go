package bench

import (
	"sync"
	"time"
)

// progress tells how far the run has come. How long a phase takes is known beforehand, nearly; within it, time passes.
type progress struct {
	show  func(what string, done, total time.Duration)
	total time.Duration
	stop  chan struct{}
	ended sync.WaitGroup

	mu      sync.Mutex
	what    string
	before  time.Duration // of the phases that are over
	about   time.Duration
	started time.Time
}

// showProgress begins to call show, if there is one, a few times a second.
func showProgress(show func(string, time.Duration, time.Duration), total time.Duration) *progress {
	p := &progress{show: show, total: total, stop: make(chan struct{})}
	if show == nil {
		return p
	}
	p.ended.Go(func() {
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-ticker.C:
				p.tell()
			}
		}
	})
	return p
}

// phase begins the next phase.
func (p *progress) phase(about time.Duration, what string) {
	p.mu.Lock()
	p.before += p.about
	p.what, p.about, p.started = what, about, time.Now()
	p.mu.Unlock()
	if p.show != nil {
		p.tell()
	}
}

func (p *progress) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(p.what, p.before+min(time.Since(p.started), p.about), max(p.total, p.before+p.about))
}

func (p *progress) end() {
	close(p.stop)
	p.ended.Wait()
}
