"""Write-behind under crashes: processes and the journal's server are killed, and what was not synced is really lost."""
