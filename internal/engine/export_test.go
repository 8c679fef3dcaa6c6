package engine

import "time"

// SessionsALook is how many sessions a look takes.
const SessionsALook = sessionsALook

// Pass has the sessions that nothing uses be so for that much longer.
func (e *Engine) Pass(d time.Duration) {
	for _, h := range e.everyHub() {
		h.mu.Lock()
		for _, s := range h.sessions {
			s.quietAt = s.quietAt.Add(-d)
		}
		h.mu.Unlock()
	}
}
