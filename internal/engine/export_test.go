package engine

// SessionsALook is how many sessions a look takes.
const SessionsALook = sessionsALook
