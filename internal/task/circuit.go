package task

import "time"

// CircuitState is where a shared circuit stands.
type CircuitState string

// The states of a shared circuit. An open circuit whose time is up is half_open, whether or not anybody has looked since;
// one whose planned hold has begun is held.
const (
	CircuitClosed     CircuitState = "closed"     // steps go out, within its limits
	CircuitOpen       CircuitState = "open"       // none goes out until OpenUntil
	CircuitHalfOpen   CircuitState = "half_open"  // at most max_probes run at a time, over all servers
	CircuitRecovering CircuitState = "recovering" // what waited goes out in doubling waves
	CircuitHeld       CircuitState = "held"       // an operator keeps it shut
)

// CircuitPolicy says when a circuit opens, how it closes, and what it lets through. A nil field is not set: the namespace's
// default decides, and where that is not set either, the value named here.
type CircuitPolicy struct {
	Window               *time.Duration // over which calls are judged, in ten buckets; 1 s … 1 h; default 60 s
	MinObservations      *int           // calls within the window before it may trip; 1 … 1,000,000; default 20
	FailureRateThreshold *float64       // share of failed calls that opens it; (0, 1]; default 0.5
	SlowCallDuration     *time.Duration // a run that lasts as long is slow; > 0 … 1 h; default: none is slow
	SlowRateThreshold    *float64       // share of slow calls that opens it; (0, 1]; default 0.5
	MinFailingWorkers    *int           // workers that must have seen it fail; 1 … 64; default 1
	OpenDuration         *time.Duration // how long it stays open the first time; 1 s … 7 d; default 30 s
	MaxOpenDuration      *time.Duration // to which that doubles, and the bound of reach; 1 s … 7 d; default 1 h
	MaxProbes            *int           // runs at a time while half-open; 1 … 100; default 1
	CloseAfterSuccesses  *int           // successful probes, in all, that end half-open; 1 … 1,000; default 3
	RecoveryWave         *int           // steps of the first wave; 1 … 10,000; default 10
	MaxInFlight          *int           // runs at a time, over all servers; 1 … 100,000; default: no bound
	Rate                 *float64       // starts a second, over all servers; 0.001 … 100,000; default: no bound
	SuspendBudgets       *bool          // deadlines and max_elapsed stand still while it is open or held; default false
}

// Circuit is a shared circuit as it stands.
type Circuit struct {
	ID         int32
	Namespace  string
	Name       string
	State      CircuitState
	Generation int64         // rises by one at every transition
	Since      time.Time     // when it came to State
	Cause      CircuitCause  // why; empty: it never left closed
	OpenUntil  *time.Time    // while open: when probing begins
	OpenFor    time.Duration // how long it was last opened for; doubles with each failed probe; 0: closed
	Hold       *CircuitHold  // in force, or planned
	Policy     CircuitPolicy // what is set on the circuit itself
	InForce    CircuitPolicy // that, the namespace's default and the built-in values; nil only where the default is none

	// Within the window that ends now.
	Observed, Failed, Slow int
	FailingWorkers         int // workers that saw a call of it fail

	Probes    int // successful ones since it is half-open
	Wave      int // size of the wave under way; 0: none
	WaveDone  int // of it, successes
	InFlight  int // leases of its steps, over all servers
	Waiting   int // steps that could run now but for the circuit or for want of workers, counted up to 10,000
	Barred    []BarredWorker
	CreatedAt time.Time
}

// CircuitHold keeps a circuit shut from From until Until, or until it is released.
type CircuitHold struct {
	Reason string
	Actor  string
	From   time.Time
	Until  *time.Time // nil: until released
}

// BarredWorker is a worker that gets no steps of a circuit for a while: it fails where others do not.
type BarredWorker struct {
	WorkerID string
	Until    time.Time
}

// CircuitCause is why a circuit changed.
type CircuitCause string

// The causes of a transition.
const (
	CauseFailureRate   CircuitCause = "failure_rate"   // the share of failed calls in the window
	CauseSlowRate      CircuitCause = "slow_rate"      // the share of slow calls in the window
	CauseReach         CircuitCause = "reach"          // a failure that reaches the whole circuit
	CauseOpenElapsed   CircuitCause = "open_elapsed"   // its time is up: probing begins
	CauseProbeFailed   CircuitCause = "probe_failed"   // a probe failed or was slow
	CauseProbesPassed  CircuitCause = "probes_passed"  // enough probes succeeded
	CauseWavePassed    CircuitCause = "wave_passed"    // a wave succeeded: the next one is twice as large
	CauseWaveFailed    CircuitCause = "wave_failed"    // a step of a wave failed or was slow
	CauseRecovered     CircuitCause = "recovered"      // nothing waits any more, or the last wave succeeded
	CauseHold          CircuitCause = "hold"           // an operator holds it, or plans to
	CauseHoldEnded     CircuitCause = "hold_ended"     // its end has come
	CauseRelease       CircuitCause = "release"        // an operator released it
	CausePolicy        CircuitCause = "policy"         // an operator changed its policy; the state stays
	CauseWorkersBarred CircuitCause = "workers_barred" // too few workers fail to open it: they are barred; the state stays
)

// CircuitEvent is one entry of a circuit's record.
type CircuitEvent struct {
	ID         int64
	Circuit    string
	At         time.Time
	Generation int64 // after it
	From, To   CircuitState
	Cause      CircuitCause
	OpenUntil  *time.Time
	Wave       int    // size of the wave that begins; 0: none
	Step       StepID // of the attempt that brought it about; 0: none
	Dispatch   int
	Workers    []string // those that were barred, or that had seen it fail
	Actor      string   // of an operator's act
	Reason     string
	Hold       *CircuitHold // of a hold: its bounds
	Observed   int          // in the window, when it was judged
	Failed     int
	Slow       int
	Policy     CircuitPolicy // in force
}

// CircuitQuery chooses circuits of a namespace, by name.
type CircuitQuery struct {
	Namespace  string
	States     []CircuitState // empty: all
	MinWaiting int            // steps waiting, at least; ≤ 10,000
	After      string         // name to go on behind
	Limit      int
}

// CircuitEventQuery chooses events of a namespace's circuits, newest first.
type CircuitEventQuery struct {
	Namespace string
	Circuit   string     // empty: all
	From, To  *time.Time // at or after; before
	Before    int64      // event id to go on below; 0: the newest
	Limit     int
}

// CircuitObservation is what a run saw of a dependency besides its step's own.
type CircuitObservation struct {
	Circuit             string
	CircuitID           int32 // filled in by the engine
	Calls, Failed, Slow int   // 1 … 10,000; the others no more
}

// Blame is whose fault a retryable failure is.
type Blame string

// Whom a failure may be blamed on. The circuit is charged for its dependency only.
const (
	BlameDependency Blame = "dependency" // the default
	BlameWorker     Blame = "worker"
	BlameStep       Blame = "step" // what it was asked to do: neither the dependency nor the worker is charged
)

// Set takes over the named fields of p: a nil one is unset.
func (c *CircuitPolicy) Set(p CircuitPolicy, fields []string) error {
	for _, f := range fields {
		switch f {
		case "window_duration":
			c.Window = p.Window
		case "min_observations":
			c.MinObservations = p.MinObservations
		case "failure_rate_threshold":
			c.FailureRateThreshold = p.FailureRateThreshold
		case "slow_call_duration":
			c.SlowCallDuration = p.SlowCallDuration
		case "slow_rate_threshold":
			c.SlowRateThreshold = p.SlowRateThreshold
		case "min_failing_workers":
			c.MinFailingWorkers = p.MinFailingWorkers
		case "open_duration":
			c.OpenDuration = p.OpenDuration
		case "max_open_duration":
			c.MaxOpenDuration = p.MaxOpenDuration
		case "max_probes":
			c.MaxProbes = p.MaxProbes
		case "close_after_successes":
			c.CloseAfterSuccesses = p.CloseAfterSuccesses
		case "recovery_wave":
			c.RecoveryWave = p.RecoveryWave
		case "max_in_flight":
			c.MaxInFlight = p.MaxInFlight
		case "rate":
			c.Rate = p.Rate
		case "suspend_budgets":
			c.SuspendBudgets = p.SuspendBudgets
		default:
			return Invalid("update_mask", "a circuit's policy has no field %q", f)
		}
	}
	return nil
}

// Check refuses a policy whose fields contradict each other, where both are set on the same circuit or namespace.
func (c *CircuitPolicy) Check() error {
	if c.OpenDuration != nil && c.MaxOpenDuration != nil && *c.MaxOpenDuration < *c.OpenDuration {
		return Invalid("policy.max_open_duration", "it is shorter than open_duration")
	}
	return nil
}
