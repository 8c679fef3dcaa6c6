package migrations

// The runner over any set of files, so that tests need not wait for the schema to have the case they are about.
var (
	UpFiles     = up
	StatusFiles = status
	HashFiles   = hash
)

// UpLock is what Up waits for.
const UpLock = upLock
