package bench

import "time"

// sizes is how long everything runs, and how much of it there is.
type sizes struct {
	rounds         int           // of B1
	warmup, window time.Duration // of one measurement of a rate
	callWindow     time.Duration // of empty calls
	floorWindow    time.Duration // where only the floor's latencies are wanted
	probes         int           // single empty calls that are timed
	sample         int           // tasks of each scenario that the checker asks the SQL surface about; below 0: all
	chains         int           // of four steps
	chainEvery     time.Duration
	longChains     int // of chainSteps, one after another
	chainSteps     int
	manyChains     int // at once
	manySteps      int // of each

	fanRounds  int // of B3
	wideFan    int // steps beside each other in the one task
	narrowFan  int // in each of fans tasks at once
	fans       int
	fanServers int

	dueRounds int           // of B4: drains of each kind, an even number for the turns to be fair
	dueSteps  int           // in each
	dueMargin time.Duration // from the time they take to fail to when they are due

	backlogs   []int64 // of B5, smallest first, of ready steps
	aside      int64   // steps in lanes that nobody subscribes to
	claimTurns int     // each of which claims claimsATurn times on either side
	claims     int     // claims a turn

	oldBefore, oldDuring time.Duration // of B6
	oldRate              int           // steps a second

	idleStreams int // of B7
	idleWindow  time.Duration
	idleSettle  time.Duration // before it, for the garbage of opening to be collected
	// idleFloorWindow is the one of an empty server, and of ours without streams, instead of idleWindow.
	idleFloorWindow time.Duration

	replicas  []int // servers of B8, rising
	wakes     int   // timed in B8, for each number of servers
	wakeEvery time.Duration
	// replicaWindow is B8's instead of window.
	replicaWindow time.Duration

	tenantBacklog int64 // of B9's first tenant
	tenantBeats   int   // of the second one, each way
	tenantEvery   time.Duration

	payloads     []int // bytes, of B10
	payloadBytes int   // in all, of each size

	freshSteps int // of B11
}

// usualSizes are those of the bars, but for the ones that take very long.
var usualSizes = sizes{
	rounds: 5, warmup: time.Second, window: 8 * time.Second, callWindow: 2 * time.Second, floorWindow: 2 * time.Second,
	probes: 2000, sample: 200, chains: 600, chainEvery: 50 * time.Millisecond,
	longChains: 5, chainSteps: 300, manyChains: 100, manySteps: 300,
	fanRounds: 5, wideFan: 9998, narrowFan: 100, fans: 100, fanServers: 4,
	dueRounds: 6, dueSteps: 100_000, dueMargin: 2 * time.Second,
	backlogs: []int64{10_000, 1_000_000}, aside: 1_000_000, claimTurns: 50, claims: 20,
	oldBefore: 20 * time.Second, oldDuring: time.Minute, oldRate: 5000,
	idleStreams: 1000, idleWindow: time.Minute, idleSettle: 10 * time.Second, idleFloorWindow: 30 * time.Second,
	replicas: []int{1, 2, 4}, wakes: 1000, wakeEvery: 10 * time.Millisecond, replicaWindow: 4 * time.Second,
	tenantBacklog: 1_000_000, tenantBeats: 200, tenantEvery: 100 * time.Millisecond,
	payloads: []int{100, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10}, payloadBytes: 32 << 20,
	freshSteps: 100_000,
}

// fullSizes are those of the bars.
func fullSizes() sizes {
	s := usualSizes
	s.backlogs = []int64{10_000, 1_000_000, 10_000_000}
	s.oldDuring = 10 * time.Minute
	s.idleStreams, s.idleWindow, s.idleFloorWindow = 10_000, 10*time.Minute, 2*time.Minute
	return s
}

// quickSizes are for seeing that all of it works.
var quickSizes = sizes{
	rounds: 1, warmup: 500 * time.Millisecond, window: 2 * time.Second, callWindow: 500 * time.Millisecond, floorWindow: 300 * time.Millisecond,
	probes: 300, sample: 50, chains: 60, chainEvery: 40 * time.Millisecond,
	longChains: 1, chainSteps: 300, manyChains: 50, manySteps: 20,
	fanRounds: 3, wideFan: 9998, narrowFan: 100, fans: 20, fanServers: 4,
	dueRounds: 2, dueSteps: 5000, dueMargin: time.Second,
	backlogs: []int64{2000, 20_000}, aside: 20_000, claimTurns: 4, claims: 5,
	oldBefore: 2 * time.Second, oldDuring: 6 * time.Second, oldRate: 2000,
	idleStreams: 200, idleWindow: 3 * time.Second, idleSettle: 2 * time.Second, idleFloorWindow: 3 * time.Second,
	replicas: []int{1, 2, 4}, wakes: 100, wakeEvery: 10 * time.Millisecond, replicaWindow: 500 * time.Millisecond,
	tenantBacklog: 50_000, tenantBeats: 20, tenantEvery: 40 * time.Millisecond,
	payloads: []int{100, 4 << 10, 64 << 10, 512 << 10}, payloadBytes: 4 << 20,
	freshSteps: 10_000,
}
